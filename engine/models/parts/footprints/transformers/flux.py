"""Count the parameters of a `FluxTransformer2DModel` and the memory of training it. No torch."""

from __future__ import annotations

from engine.models.parts.footprints.transformers.layers import (
    IMAGE_PROJECTIONS,
    TIME_WIDTH,
    Layers,
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
    heads, channels = int(config.get("num_attention_heads", 24)), int(config.get("in_channels", 64))
    width = heads * int(config.get("attention_head_dim", 128))
    rows, text_rows = batch * (side // _PACKED) ** 2, batch * text_length
    layers = Layers(
        # The attention's output has the type of the queries, which are the output of a norm.
        tape=tape,
        width=width,
        heads=heads,
        head_norm=torch_rms_norm,
        attention_width=tape.norm_width,
    )
    tape.linear("x_embedder", channels, width, rows, input_width=tape.width)
    embedder(tape, "time_text_embed.timestep_embedder", TIME_WIDTH, width, batch)
    if config.get("guidance_embeds"):
        embedder(tape, "time_text_embed.guidance_embedder", TIME_WIDTH, width, batch)
    embedder(tape, "time_text_embed.text_embedder", int(config.get("pooled_projection_dim", 768)), width, batch)
    text_width = int(config.get("joint_attention_dim", 4096))
    tape.linear("context_embedder", text_width, width, text_rows, input_width=tape.width)
    for k in range(count_of(config.get("num_layers", 19))):
        with tape.block(width * (rows + text_rows)):
            layers.joint_block(f"transformer_blocks.{k}", batch, rows, text_rows)
    for k in range(count_of(config.get("num_single_layers", 38))):
        with tape.block(width * (rows + text_rows)):
            _single_block(layers, f"single_transformer_blocks.{k}", batch, rows + text_rows)
    final_layers(tape, width, int(config.get("out_channels") or channels), rows, batch)


def _single_block(layers: Layers, name: str, batch: int, rows: int) -> None:
    """Record a block in which image and text are one sequence, and attention and feed-forward side by side."""
    tape, width = layers.tape, layers.width
    inner = 4 * width
    is_modulated = tape.linear(f"{name}.norm.linear", width, 3 * width, batch, input_width=tape.width)
    layers.modulated_norm(rows, is_modulated=is_modulated)
    shared = tape.linear(f"{name}.proj_mlp", width, inner, rows, input_width=tape.norm_width)
    tape.keep(inner * rows, tape.width)  # the activation's input
    layers.project(f"{name}.attn", IMAGE_PROJECTIONS, rows, input_width=tape.norm_width, is_kept=shared)
    layers.attend(rows)
    tape.linear(f"{name}.proj_out", width + inner, width, rows, input_width=layers.attention_width)
    layers.gate(rows, is_modulated=is_modulated)
    # The activation, a copy of it in the type of the attention's output, and both side by side.
    copy = layers.attention_width if layers.attention_width != tape.width else 0
    tape.passing((inner * (tape.width + copy) + (width + inner) * layers.attention_width) * rows)
