"""Count the parameters of a `WanTransformer3DModel` and the memory of training it. No torch."""

from __future__ import annotations

import math
from typing import Final

from engine.models.parts.footprints.transformers.layers import embedder, normed_attention
from engine.models.parts.tape import Config, Tape, count_of

_FLOAT32: Final = 4


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, frames: int = 1) -> None:
    """Record the transformer on `batch` latents of `frames` x `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, channels = int(config.get("num_attention_heads", 40)), int(config.get("in_channels", 16))
    head, inner = int(config.get("attention_head_dim", 128)), int(config.get("ffn_dim", 13824))
    width = heads * head
    tape.buffers(2 * int(config.get("rope_max_seq_len", 1024)) * head)  # sines and cosines of positions
    patch = [int(size) for size in config.get("patch_size", (1, 2, 2))]
    rows, text_rows = batch * frames * side**2 // math.prod(patch), batch * text_length
    tape.matrix(width, channels * math.prod(patch))
    tape.weights(width)
    tape.keep(channels * math.prod(patch) * rows, tape.width)
    embedder(tape, "condition_embedder.time_embedder", int(config.get("freq_dim", 256)), width, batch)
    tape.linear("condition_embedder.time_proj", width, 6 * width, batch, input_width=tape.width)
    text_width = int(config.get("text_dim", 4096))
    tape.linear("condition_embedder.text_embedder.linear_1", text_width, width, text_rows, input_width=tape.width)
    tape.keep(width * text_rows, tape.width)
    tape.linear("condition_embedder.text_embedder.linear_2", width, width, text_rows, input_width=tape.width)
    has_norm = bool(config.get("cross_attn_norm", True))
    for k in range(count_of(config.get("num_layers", 40))):
        with tape.block(width * rows):
            _block(tape, f"blocks.{k}", (width, inner, heads), rows, text_rows, has_norm=has_norm)
    _modulated_norm(tape, width, rows)
    outputs = int(config.get("out_channels") or channels) * math.prod(patch)
    tape.linear("proj_out", width, outputs, rows, input_width=tape.width)
    tape.weights(2 * width)


def _block(tape: Tape, name: str, sizes: tuple[int, int, int], rows: int, text_rows: int, *, has_norm: bool) -> None:
    """Record a block. Its norms and its residuals are computed in float32, by its class."""
    width, inner, heads = sizes
    tape.weights(6 * width)
    _modulated_norm(tape, width, rows)
    normed_attention(tape, f"{name}.attn1", width, heads, rows=rows, key_rows=rows)
    tape.scale(width * rows, tape.width)
    if has_norm:
        tape.weights(2 * width)
        tape.keep(width * rows, _FLOAT32)
    normed_attention(tape, f"{name}.attn2", width, heads, rows=rows, key_rows=text_rows)
    _modulated_norm(tape, width, rows)
    tape.linear(f"{name}.ffn.net.0.proj", width, inner, rows, input_width=tape.width)
    tape.keep(inner * rows, tape.width)
    tape.linear(f"{name}.ffn.net.2", inner, width, rows, input_width=tape.width)
    tape.scale(width * rows, _FLOAT32)
    tape.passing((inner + 2 * width) * rows * tape.width + 3 * width * rows * _FLOAT32)


def _modulated_norm(tape: Tape, width: int, rows: int) -> None:
    """Record a norm in float32 without weights that is scaled and shifted by functions of the time."""
    tape.keep(width * rows, _FLOAT32)
    tape.scale(width * rows, _FLOAT32)
