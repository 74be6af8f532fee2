"""Count the parameters of an `LTXVideoTransformer3DModel` and the memory of training it. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.footprints.transformers.layers import TIME_WIDTH, embedder, normed_attention
from engine.models.parts.tape import Config, Tape, count_of

_FLOAT32: Final = 4


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, frames: int = 1) -> None:
    """Record the transformer on `batch` latents of `frames` x `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, channels = int(config.get("num_attention_heads", 32)), int(config.get("in_channels", 128))
    width, text_width = heads * int(config.get("attention_head_dim", 64)), int(config.get("caption_channels", 4096))
    rows, text_rows = batch * frames * side**2, batch * text_length
    tape.linear("proj_in", channels, width, rows, input_width=tape.width)
    tape.weights(2 * width)
    embedder(tape, "time_embed.emb.timestep_embedder", TIME_WIDTH, width, batch)
    tape.linear("time_embed.linear", width, 6 * width, batch, input_width=tape.width)
    tape.linear("caption_projection.linear_1", text_width, width, text_rows, input_width=tape.width)
    tape.keep(width * text_rows, tape.width)
    tape.linear("caption_projection.linear_2", width, width, text_rows, input_width=tape.width)
    for k in range(count_of(config.get("num_layers", 28))):
        with tape.block(width * rows):
            _block(tape, f"transformer_blocks.{k}", width, heads, rows=rows, text_rows=text_rows)
    _modulated_norm(tape, width, rows)
    tape.linear("proj_out", width, int(config.get("out_channels") or channels), rows, input_width=tape.norm_width)


def _block(tape: Tape, name: str, width: int, heads: int, *, rows: int, text_rows: int) -> None:
    tape.weights(6 * width)
    _modulated_norm(tape, width, rows)
    normed_attention(tape, f"{name}.attn1", width, heads, rows=rows, key_rows=rows)
    tape.scale(width * rows, tape.width)
    normed_attention(tape, f"{name}.attn2", width, heads, rows=rows, key_rows=text_rows)
    _modulated_norm(tape, width, rows)
    inner = 4 * width
    tape.linear(f"{name}.ff.net.0.proj", width, inner, rows, input_width=tape.width)
    tape.keep(inner * rows, tape.width)
    tape.linear(f"{name}.ff.net.2", inner, width, rows, input_width=tape.width)
    tape.scale(width * rows, tape.width)
    rotations = 2 * width * rows * _FLOAT32
    tape.passing((inner + 3 * width) * rows * tape.width + rotations)


def _modulated_norm(tape: Tape, width: int, rows: int) -> None:
    """Record Diffusers' norm without weights, scaled and shifted by functions of the time, which have weights.

    The norm keeps its input, and that in float32.
    """
    tape.keep(width * rows, _FLOAT32 + (tape.width if tape.width < _FLOAT32 else 0))
    tape.scale(width * rows, tape.width)
