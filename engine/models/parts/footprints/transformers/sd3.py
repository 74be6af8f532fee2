"""Count the parameters of an `SD3Transformer2DModel` and the memory of training it. No torch."""

from __future__ import annotations

from engine.models.parts.footprints.transformers.layers import (
    IMAGE_PROJECTIONS,
    TIME_WIDTH,
    Layers,
    Stream,
    diffusers_rms_norm,
    embedder,
    final_layers,
)
from engine.models.parts.tape import Config, Tape, count_of


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int) -> None:
    """Record the transformer on `batch` latents of `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, patch = int(config.get("num_attention_heads", 18)), int(config.get("patch_size", 2))
    width, channels = heads * int(config.get("attention_head_dim", 64)), int(config.get("in_channels", 16))
    rows, text_rows = batch * (side // patch) ** 2, batch * text_length
    layers = Layers(
        tape=tape,
        width=width,
        heads=heads,
        head_norm=diffusers_rms_norm if config.get("qk_norm") else None,
        attention_width=tape.width,
        copies_joint=True,
    )
    tape.conv("pos_embed.proj", channels, width, batch * side**2, size=patch)
    tape.buffers(int(config.get("pos_embed_max_size") or 0) ** 2 * width)
    embedder(tape, "time_text_embed.timestep_embedder", TIME_WIDTH, width, batch)
    embedder(tape, "time_text_embed.text_embedder", int(config.get("pooled_projection_dim", 2048)), width, batch)
    text_width = int(config.get("joint_attention_dim", 4096))
    tape.linear("context_embedder", text_width, width, text_rows, input_width=tape.width)
    count, dual = count_of(config.get("num_layers", 18)), set(config.get("dual_attention_layers") or ())
    for k in range(count):
        with tape.block(width * (rows + text_rows)):
            is_last = k == count - 1
            _block(layers, f"transformer_blocks.{k}", batch, (rows, text_rows), is_dual=k in dual, is_last=is_last)
    final_layers(tape, width, patch**2 * int(config.get("out_channels") or channels), rows, batch)


def _block(layers: Layers, name: str, batch: int, rows: tuple[int, int], *, is_dual: bool, is_last: bool) -> None:
    """Record a block on `rows` positions of the image and of the text; the last one gives no text."""
    tape, width = layers.tape, layers.width
    is_modulated, is_text_modulated = (
        tape.linear(f"{name}.{norm}.linear", width, sets * width, batch, input_width=tape.width)
        for norm, sets in (("norm1", 9 if is_dual else 6), ("norm1_context", 2 if is_last else 6))
    )
    image = Stream.of_image(rows[0], is_modulated=is_modulated)
    text = Stream.of_text(rows[1], is_modulated=is_text_modulated, is_left_out=is_last)
    layers.enter(name, image)
    layers.enter(name, text)
    layers.attend(sum(rows))
    if is_dual:
        # The norm's result is scaled a second time, for a self-attention of the image.
        layers.project(f"{name}.attn2", IMAGE_PROJECTIONS, image.rows, input_width=tape.norm_width)
        layers.attend(image.rows)
        layers.project_out(f"{name}.attn2.to_out.0", image.rows)
        layers.gate(image.rows, is_modulated=image.is_modulated)
    layers.leave(name, image, layers.gelu)
    layers.leave(name, text, layers.gelu)
