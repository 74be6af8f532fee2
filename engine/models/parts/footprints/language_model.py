"""Count the parameters of language models (Qwen, Llama) and the memory of encoding a caption. No torch."""

from __future__ import annotations

from engine.models.parts.tape import Config, count_of
from engine.models.spec import TextEncoder


def text_encoder(config: Config, *, length: int, value_bytes: int, is_float16: bool = False) -> TextEncoder:
    """Return the footprint of a Qwen 3, a Qwen 2.5 VL or a Llama on one caption, with the states of all layers.

    Args:
        config: its configuration.
        length: the number of tokens of a caption, with padding.
        value_bytes: bytes of a value in the task's precision.
        is_float16: without effect: all weights are in the task's precision.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a model.
    """
    text = config.get("text_config") or config
    width, inner, heads = int(text["hidden_size"]), int(text["intermediate_size"]), int(text["num_attention_heads"])
    layers, vocabulary = count_of(text["num_hidden_layers"]), int(text["vocab_size"])
    has_head = any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in config["architectures"])
    parameters = vocabulary * width + layers * _block(text, width, inner, heads) + width
    if has_head and not config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)):
        parameters += vocabulary * width
    if "vision_config" in config:
        parameters += _vision(config["vision_config"])
    values = (layers + 2) * width + max(3 * inner, vocabulary * has_head)
    return TextEncoder(
        parameters=parameters, weight_bytes=parameters * value_bytes, encode_bytes=length * values * value_bytes
    )


def _block(text: Config, width: int, inner: int, heads: int) -> int:
    """Return the parameters of a block; Qwen 2 has biases, Qwen 3 norms of queries and keys, Llama neither."""
    kind = str(text.get("model_type", ""))
    is_third = kind.startswith("qwen3")
    head = int(text.get("head_dim") or (128 if is_third else width // heads))
    queries, keys = heads * head, int(text.get("num_key_value_heads") or heads) * head
    extra = 2 * head if is_third else 0 if kind == "llama" else queries + 2 * keys
    return width * (2 * queries + 2 * keys) + extra + 3 * width * inner + 2 * width


def _vision(config: Config) -> int:
    """Return the parameters of the part for images, which is loaded with the rest."""
    width, inner = int(config.get("hidden_size", 1280)), int(config.get("intermediate_size", 3420))
    patch = int(config.get("in_channels", config.get("in_chans", 3))) * int(config.get("temporal_patch_size", 2))
    merged = width * int(config.get("spatial_merge_size", 2)) ** 2
    block = 2 * width + 4 * width * (width + 1) + 3 * width * inner + 2 * inner + width
    merger = width + merged * (merged + 1) + (merged + 1) * int(config.get("out_hidden_size", 3584))
    return patch * int(config.get("patch_size", 14)) ** 2 * width + count_of(config.get("depth", 32)) * block + merger
