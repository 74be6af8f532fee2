"""Count the parameters of CLIP's text encoders and the memory of training them. No torch."""

from __future__ import annotations

from engine.models.parts.tape import Config, Tape, count_of
from engine.models.spec import TextEncoder


def fixed_text_encoder(config: Config, /, *, length: int, value_bytes: int, is_float16: bool) -> TextEncoder:
    """Return the footprint of a text encoder that is never trained, on one caption of its own full length.

    Args:
        config: its configuration.
        length: without effect: the number of tokens is the configuration's.
        value_bytes: bytes of a value in the task's precision.
        is_float16: without effect: all weights are in the task's precision.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such an encoder.
    """
    tape = Tape(width=value_bytes, norm_width=value_bytes)
    text_encoder(config, tape, batch=1)
    # The activation of a block's feed-forward layer, and the states around it.
    values = 3 * int(config.get("intermediate_size", 2048)) + 4 * int(config.get("hidden_size", 512))
    return TextEncoder(
        parameters=tape.parameters,
        weight_bytes=tape.parameters * value_bytes,
        encode_bytes=int(config.get("max_position_embeddings", 77)) * values * value_bytes,
    )


def text_encoder(config: Config, tape: Tape, *, batch: int) -> None:
    """Record a text encoder on `batch` captions of full length. Raises the errors of `unet.unet`."""
    width, inner = int(config.get("hidden_size", 512)), int(config.get("intermediate_size", 2048))
    length = int(config.get("max_position_embeddings", 77))
    rows, heads = batch * length, int(config.get("num_attention_heads", 8))
    tape.matrix(int(config.get("vocab_size", 49408)) + length, width)
    for k in range(count_of(config.get("num_hidden_layers", 12))):
        name = f"text_model.encoder.layers.{k}"
        tape.norm(width, rows)
        shared = False
        for projection in ("q_proj", "k_proj", "v_proj"):
            shared |= tape.linear(
                f"{name}.self_attn.{projection}", width, width, rows, input_width=tape.norm_width, is_kept=shared
            )
        tape.keep(4 * width * rows, tape.width)
        tape.keep(heads * rows, 4)
        tape.linear(f"{name}.self_attn.out_proj", width, width, rows, input_width=tape.width, is_kept=True)
        tape.norm(width, rows)
        tape.linear(f"{name}.mlp.fc1", width, inner, rows, input_width=tape.norm_width)
        # quick_gelu has two multiplications and keeps a sigmoid.
        tape.keep((3 if config.get("hidden_act", "quick_gelu") == "quick_gelu" else 1) * inner * rows, tape.width)
        tape.linear(f"{name}.mlp.fc2", inner, width, rows, input_width=tape.width)
    tape.norm(width, rows)
    if "CLIPTextModelWithProjection" in (config.get("architectures") or ()):
        tape.matrix(int(config.get("projection_dim", 512)), width)
