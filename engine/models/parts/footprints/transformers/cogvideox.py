"""Count the parameters of a `CogVideoXTransformer3DModel` and the memory of training it. No torch."""

from __future__ import annotations

from engine.models.parts.footprints.transformers.layers import IMAGE_PROJECTIONS, Layers, embedder
from engine.models.parts.tape import Config, Tape, count_of


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int, frames: int) -> None:
    """Record the transformer on `batch` latents of `frames` frames of `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    heads, patch = int(config.get("num_attention_heads", 30)), int(config.get("patch_size", 2))
    width, channels = heads * int(config.get("attention_head_dim", 64)), int(config.get("in_channels", 16))
    time_width, depth = int(config.get("time_embed_dim", 512)), int(config.get("patch_size_t") or 1)
    rows, text_rows = batch * -(-frames // depth) * (side // patch) ** 2, batch * text_length
    layers = Layers(
        tape=tape,
        width=width,
        heads=heads,
        head_norm=_layer_norm,
        has_bias=bool(config.get("attention_bias", True)),
        attention_width=tape.width,
    )
    if config.get("patch_size_t") is None:
        tape.conv("patch_embed.proj", channels, width, batch * frames * side**2, size=patch)
        tape.weights(0 if config.get("patch_bias", True) else -width)
    else:
        inputs = channels * patch**2 * depth
        tape.linear("patch_embed.proj", inputs, width, rows, input_width=tape.width)
    if not config.get("use_rotary_positional_embeddings", False):
        tape.buffers(width * _positions(config))
    text_width = int(config.get("text_embed_dim", 4096))
    tape.linear("patch_embed.text_proj", text_width, width, text_rows, input_width=tape.width)
    embedder(tape, "time_embedding", width, time_width, batch)
    for k in range(count_of(config.get("num_layers", 30))):
        with tape.block(width * (rows + text_rows)):
            _block(layers, f"transformer_blocks.{k}", batch, rows + text_rows, time_width)
    tape.norm(width, rows)
    is_modulated = tape.linear("norm_out.linear", time_width, 2 * width, batch, input_width=tape.width)
    _modulated_norm(layers, rows, is_modulated=is_modulated)
    outputs = patch**2 * depth * int(config.get("out_channels") or 16)
    tape.linear("proj_out", width, outputs, rows, input_width=tape.norm_width)


def _positions(config: Config) -> int:
    """Return the number of tokens in the table of positions."""
    patch, step = int(config.get("patch_size", 2)), int(config.get("temporal_compression_ratio", 4))
    height, width = (
        int(config.get(key, usual)) // patch for key, usual in (("sample_height", 60), ("sample_width", 90))
    )
    frames = (int(config.get("sample_frames", 49)) - 1) // step + 1
    return int(config.get("max_text_seq_length", 226)) + frames * height * width


def _block(layers: Layers, name: str, batch: int, rows: int, time_width: int) -> None:
    """Record a block on `rows` positions of clip and text, which share its layers."""
    tape, width = layers.tape, layers.width
    is_modulated = tape.linear(f"{name}.norm1.linear", time_width, 6 * width, batch, input_width=tape.width)
    _modulated_norm(layers, rows, is_modulated=is_modulated)
    layers.project(f"{name}.attn1", IMAGE_PROJECTIONS, rows, input_width=tape.norm_width)
    layers.attend(rows)
    layers.project_out(f"{name}.attn1.to_out.0", rows)
    tape.weights(0 if layers.has_bias else width)
    layers.gate(rows, is_modulated=is_modulated)
    is_modulated = tape.linear(f"{name}.norm2.linear", time_width, 6 * width, batch, input_width=tape.width)
    _modulated_norm(layers, rows, is_modulated=is_modulated)
    layers.gelu(f"{name}.ff", rows)
    layers.gate(rows, is_modulated=is_modulated)


def _modulated_norm(layers: Layers, rows: int, *, is_modulated: bool) -> None:
    """Record a layer norm with weights of its own that is scaled and shifted by each sample's modulation."""
    layers.tape.norm(layers.width, rows)
    if is_modulated:
        layers.tape.keep(layers.width * rows, layers.tape.norm_width)


def _layer_norm(tape: Tape, channels: int, rows: int) -> None:
    """Record the layer norm of queries or keys."""
    tape.norm(channels, rows)
