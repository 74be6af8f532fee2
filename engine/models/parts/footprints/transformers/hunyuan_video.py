"""Count the parameters of a `HunyuanVideoTransformer3DModel` and the memory of training it. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.footprints.transformers.layers import (
    IMAGE_PROJECTIONS,
    TIME_WIDTH,
    Layers,
    diffusers_rms_norm,
    embedder,
    final_layers,
)
from engine.models.parts.tape import Config, Tape, count_of

_TIME: Final = "time_text_embed"


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, frames: int) -> None:
    """Record the transformer on `batch` latents of `frames` frames of `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, patch = int(config.get("num_attention_heads", 24)), int(config.get("patch_size", 2))
    width, channels = heads * int(config.get("attention_head_dim", 128)), int(config.get("in_channels", 16))
    rows, text_rows = batch * frames * (side // patch) ** 2, batch * text_length
    layers = Layers(tape=tape, width=width, heads=heads, head_norm=diffusers_rms_norm, attention_width=tape.width)
    tape.conv("x_embedder.proj", channels, width, batch * frames * side**2, size=patch)
    _refiner(config, layers, batch, text_rows)
    embedder(tape, f"{_TIME}.timestep_embedder", TIME_WIDTH, width, batch)
    if config.get("guidance_embeds", True):
        embedder(tape, f"{_TIME}.guidance_embedder", TIME_WIDTH, width, batch)
    embedder(tape, f"{_TIME}.text_embedder", int(config.get("pooled_projection_dim", 768)), width, batch)
    for k in range(count_of(config.get("num_layers", 20))):
        with tape.block(width * (rows + text_rows)):
            layers.joint_block(f"transformer_blocks.{k}", batch, rows, text_rows)
    for k in range(count_of(config.get("num_single_layers", 40))):
        with tape.block(width * (rows + text_rows)):
            _single_block(layers, f"single_transformer_blocks.{k}", batch, rows + text_rows)
    final_layers(tape, width, patch**2 * int(config.get("out_channels") or channels), rows, batch)


def _refiner(config: Config, layers: Layers, batch: int, rows: int) -> None:
    """Record the blocks that refine the text states."""
    tape, width, name = layers.tape, layers.width, "context_embedder"
    text_width = int(config.get("text_embed_dim", 4096))
    embedder(tape, f"{name}.{_TIME}.timestep_embedder", TIME_WIDTH, width, batch)
    embedder(tape, f"{name}.{_TIME}.text_embedder", text_width, width, batch)
    tape.linear(f"{name}.proj_in", text_width, width, rows, input_width=tape.width)
    plain = Layers(tape=tape, width=width, heads=layers.heads, head_norm=None, attention_width=tape.width)
    for k in range(count_of(config.get("num_refiner_layers", 2))):
        block = f"{name}.token_refiner.refiner_blocks.{k}"
        tape.norm(width, rows)
        plain.project(f"{block}.attn", IMAGE_PROJECTIONS, rows, input_width=tape.norm_width)
        plain.attend(rows)
        plain.project_out(f"{block}.attn.to_out.0", rows)
        is_modulated = tape.linear(f"{block}.norm_out.linear", width, 2 * width, batch, input_width=tape.width)
        plain.gate(rows, is_modulated=is_modulated)
        tape.norm(width, rows)
        plain.gelu(f"{block}.ff", rows)
        plain.gate(rows, is_modulated=is_modulated)


def _single_block(layers: Layers, name: str, batch: int, rows: int) -> None:
    """Record a block in which clip and text are one sequence, and attention and feed-forward side by side."""
    tape, width = layers.tape, layers.width
    inner = 4 * width
    is_modulated = tape.linear(f"{name}.norm.linear", width, 3 * width, batch, input_width=tape.width)
    layers.modulated_norm(rows, is_modulated=is_modulated)
    tape.linear(f"{name}.proj_mlp", width, inner, rows, input_width=tape.norm_width)
    tape.keep(inner * rows, tape.width)  # the activation's input
    # Clip and text are joined again before the attention: another tensor than the input of `proj_mlp`.
    layers.project(f"{name}.attn", IMAGE_PROJECTIONS, rows, input_width=tape.norm_width)
    layers.attend(rows)
    tape.linear(f"{name}.proj_out", width + inner, width, rows, input_width=tape.width)
    layers.gate(rows, is_modulated=is_modulated)
    # The activation, both side by side, the residuals, and the norm's result, in parts and joined.
    tape.passing(((2 * inner + 3 * width) * tape.width + 2 * width * tape.norm_width) * rows)
