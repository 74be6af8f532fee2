"""Count the parameters of a `Flux2Transformer2DModel` and the memory of training it. No torch."""

from __future__ import annotations

from functools import partial

from engine.models.parts.footprints.transformers.layers import (
    Layers,
    Stream,
    embedder,
    final_layers,
    torch_rms_norm,
)
from engine.models.parts.tape import Config, Tape, count_of

_PACKED = 2
"""Latents of so many by so many positions are one token."""


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int) -> None:
    """Record the transformer on `batch` latents of `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, channels = int(config.get("num_attention_heads", 48)), int(config.get("in_channels", 128))
    width = heads * int(config.get("attention_head_dim", 128))
    inner = int(width * float(config.get("mlp_ratio", 3.0)))
    rows, text_rows = batch * (side // _PACKED) ** 2, batch * text_length
    layers = Layers(
        tape=tape,
        width=width,
        heads=heads,
        head_norm=torch_rms_norm,
        has_bias=False,
        attention_width=tape.norm_width,
    )
    time_width = int(config.get("timestep_guidance_channels", 256))
    embedder(tape, "time_guidance_embed.timestep_embedder", time_width, width, batch, bias=False)
    if config.get("guidance_embeds", True):
        embedder(tape, "time_guidance_embed.guidance_embedder", time_width, width, batch, bias=False)
    modulated = [
        tape.linear(f"{name}.linear", width, sets * 3 * width, batch, input_width=tape.width, bias=False)
        for name, sets in (
            ("double_stream_modulation_img", 2),
            ("double_stream_modulation_txt", 2),
            ("single_stream_modulation", 1),
        )
    ]
    tape.linear("x_embedder", channels, width, rows, input_width=tape.width, bias=False)
    text_width = int(config.get("joint_attention_dim", 15360))
    tape.linear("context_embedder", text_width, width, text_rows, input_width=tape.width, bias=False)
    image = Stream.of_image(rows, is_modulated=modulated[0])
    text = Stream.of_text(text_rows, is_modulated=modulated[1])
    for k in range(count_of(config.get("num_layers", 8))):
        name = f"transformer_blocks.{k}"
        with tape.block(width * (rows + text_rows)):
            layers.enter(name, image)
            layers.enter(name, text)
            layers.attend(rows + text_rows)
            layers.leave(name, image, partial(_feed_forward, layers, inner))
            layers.leave(name, text, partial(_feed_forward, layers, inner))
    for k in range(count_of(config.get("num_single_layers", 48))):
        with tape.block(width * (rows + text_rows)):
            _single_block(layers, f"single_transformer_blocks.{k}", inner, rows + text_rows, is_modulated=modulated[2])
    final_layers(tape, width, int(config.get("out_channels") or channels), rows, batch, bias=False)


def _gated(layers: Layers, inner: int, rows: int) -> None:
    """Record a product of the second half of 2 x `inner` values with the activation of the first."""
    tape = layers.tape
    tape.keep(inner * rows, tape.width)
    # Backward: each half's gradient is padded to the size of both.
    tape.passing((4 * inner + 2 * layers.width) * rows * tape.width)


def _feed_forward(layers: Layers, inner: int, name: str, rows: int) -> None:
    tape, width = layers.tape, layers.width
    tape.linear(f"{name}.linear_in", width, 2 * inner, rows, input_width=tape.norm_width, bias=False)
    tape.keep(2 * inner * rows, tape.width)
    _gated(layers, inner, rows)
    tape.linear(f"{name}.linear_out", inner, width, rows, input_width=tape.width, bias=False)


def _single_block(layers: Layers, name: str, inner: int, rows: int, *, is_modulated: bool) -> None:
    """Record a block in which one layer gives queries, keys, values and the feed-forward layer's input."""
    tape, width = layers.tape, layers.width
    layers.modulated_norm(rows, is_modulated=is_modulated)
    outputs = 3 * width + 2 * inner
    tape.linear(f"{name}.attn.to_qkv_mlp_proj", width, outputs, rows, input_width=tape.norm_width, bias=False)
    tape.keep(outputs * rows, tape.width)
    layers.norm_heads(rows)
    layers.attend(rows, new=3)  # the values are a part of that output
    _gated(layers, inner, rows)
    both = width + inner
    tape.linear(f"{name}.attn.to_out", both, width, rows, input_width=layers.attention_width, bias=False)
    layers.gate(rows, is_modulated=is_modulated)
    copy = layers.attention_width if layers.attention_width != tape.width else 0
    # The activation, a copy of it in the type of the attention's output, and both side by side.
    tape.passing((inner * (tape.width + copy) + both * layers.attention_width) * rows)
