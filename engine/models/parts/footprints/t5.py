"""Count the parameters of the encoder of T5 or UMT5, and the memory of encoding a caption with it. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.tape import Config, count_of
from engine.models.spec import TextEncoder

_FLOAT32: Final = 4


def text_encoder(config: Config, *, length: int, value_bytes: int, is_float16: bool) -> TextEncoder:
    """Return the footprint of a T5 encoder on one caption of `length` tokens; UMT5 has a table of positions per layer.

    Args:
        config: its configuration.
        length: the number of tokens of a caption, with padding.
        value_bytes: bytes of a value in the task's precision.
        is_float16: whether this precision is fp16, in which the last layer of each block keeps its weights in float32.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such an encoder.
    """
    width, inner, heads = int(config["d_model"]), int(config["d_ff"]), int(config["num_heads"])
    layers, is_gated = count_of(config["num_layers"]), str(config.get("feed_forward_proj", "relu")).startswith("gated")
    last = inner * width
    block = 4 * width * heads * int(config["d_kv"]) + (2 if is_gated else 1) * width * inner + last + 2 * width
    positions = int(config.get("relative_attention_num_buckets", 32)) * heads
    is_umt5 = config.get("model_type") == "umt5"
    tables = (layers if is_umt5 else 1) * positions
    parameters = int(config["vocab_size"]) * width + tables + layers * block + width
    wide = layers * last * (_FLOAT32 - value_bytes) if is_float16 else 0
    return TextEncoder(
        parameters=parameters,
        weight_bytes=parameters * value_bytes + wide,
        encode_bytes=_peak(length, width, inner, heads, is_gated=is_gated, is_umt5=is_umt5) * value_bytes,
    )


def _peak(length: int, width: int, inner: int, heads: int, *, is_gated: bool, is_umt5: bool) -> int:
    """Return the peak values of a caption: its bias of each pair of positions, its states, and a block's activations.

    UMT5 has a bias of its own in each block, and is given a mask, which is added to it.
    """
    pairs, states = heads * length**2, length * width
    feed_forward = length * inner * (3 if is_gated else 2)
    if is_umt5:
        return 5 * states + max(3 * pairs + states, feed_forward)
    return pairs + 5 * states + max(pairs + 4 * states, feed_forward)
