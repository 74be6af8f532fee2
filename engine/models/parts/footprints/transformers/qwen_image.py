"""Count the parameters of a `QwenImageTransformer2DModel` and the memory of training it. No torch."""

from __future__ import annotations

from engine.models.parts.footprints.transformers.layers import (
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
    heads, patch = int(config.get("num_attention_heads", 24)), int(config.get("patch_size", 2))
    width, channels = heads * int(config.get("attention_head_dim", 128)), int(config.get("in_channels", 64))
    rows, text_rows = batch * (side // patch) ** 2, batch * text_length
    text_width = int(config.get("joint_attention_dim", 3584))
    layers = Layers(tape=tape, width=width, heads=heads, head_norm=diffusers_rms_norm, attention_width=tape.width)
    tape.linear("img_in", channels, width, rows, input_width=tape.width)
    diffusers_rms_norm(tape, text_width, text_rows)
    tape.linear("txt_in", text_width, width, text_rows, input_width=tape.width)
    embedder(tape, "time_text_embed.timestep_embedder", TIME_WIDTH, width, batch)
    for k in range(count_of(config.get("num_layers", 60))):
        with tape.block(width * (rows + text_rows)):
            _block(layers, f"transformer_blocks.{k}", batch, rows, text_rows)
    final_layers(tape, width, patch**2 * int(config.get("out_channels") or channels), rows, batch)


def _block(layers: Layers, name: str, batch: int, rows: int, text_rows: int) -> None:
    tape, width = layers.tape, layers.width
    image, text = (
        of(
            size,
            is_modulated=tape.linear(f"{name}.{kind}_mod.1", width, 6 * width, batch, input_width=tape.width),
            feed_forward=f"{kind}_mlp",
        )
        for of, size, kind in ((Stream.of_image, rows, "img"), (Stream.of_text, text_rows, "txt"))
    )
    layers.enter(name, image)
    layers.enter(name, text)
    layers.attend(rows + text_rows)
    layers.leave(name, image, layers.gelu)
    layers.leave(name, text, layers.gelu)
    # Until the block ends there are also the results of its first norms and of its attention.
    both = width * (rows + text_rows) * (tape.norm_width + tape.width)
    tape.passing(layers.gelu_bytes(rows) + both)
