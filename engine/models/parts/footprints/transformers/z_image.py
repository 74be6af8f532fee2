"""Count the parameters of a `ZImageTransformer2DModel` and the memory of training it. No torch."""

from __future__ import annotations

from typing import Final

from engine.models.parts.footprints.transformers.layers import IMAGE_PROJECTIONS, TIME_WIDTH, Layers, diffusers_rms_norm
from engine.models.parts.tape import Config, Tape, count_of

_MULTIPLE: Final = 32
"""Image and text are padded to multiples of so many tokens."""
_MODULATION: Final = 256
"""Values of the time embedding at most."""
_TIME_INNER: Final = 1024


def transformer(config: Config, tape: Tape, *, batch: int, side: int, text_length: int) -> None:
    """Record the transformer on `batch` latents of `side` x `side`, with so many tokens of text.

    Raises:
        KeyError, TypeError, ValueError: the configuration is not that of such a transformer.
    """
    width, heads, channels = (int(config.get(*key)) for key in (("dim", 3840), ("n_heads", 30), ("in_channels", 16)))
    text_width, time_width = int(config.get("cap_feat_dim", 2560)), min(width, _MODULATION)
    patches = list(zip(config.get("all_patch_size", (2,)), config.get("all_f_patch_size", (1,)), strict=True))
    rows, text_rows = batch * _padded((side // patches[0][0]) ** 2), batch * _padded(text_length)
    layers = Layers(
        tape=tape,
        width=width,
        heads=heads,
        head_norm=diffusers_rms_norm if config.get("qk_norm", True) else None,
        has_bias=False,
        attention_width=tape.width,
    )
    tape.linear("t_embedder.mlp.0", TIME_WIDTH, _TIME_INNER, batch, input_width=tape.width)
    tape.linear("t_embedder.mlp.2", _TIME_INNER, time_width, batch, input_width=tape.width)
    for patch, frames in patches:
        tape.linear(
            f"all_x_embedder.{patch}-{frames}", frames * patch**2 * channels, width, rows, input_width=tape.width
        )
    refiners = count_of(config.get("n_refiner_layers", 2))
    for k in range(refiners):
        _block(layers, f"noise_refiner.{k}", batch, rows)
    diffusers_rms_norm(tape, text_width, text_rows)
    tape.linear("cap_embedder.1", text_width, width, text_rows, input_width=tape.width)
    tape.weights(2 * width)  # the tokens of the padding
    for k in range(refiners):
        _block(layers, f"context_refiner.{k}", batch, text_rows, has_modulation=False)
    for k in range(count_of(config.get("n_layers", 30))):
        _block(layers, f"layers.{k}", batch, rows + text_rows)
    for patch, frames in patches:
        name = f"all_final_layer.{patch}-{frames}"
        is_modulated = tape.linear(f"{name}.adaLN_modulation.1", time_width, width, batch, input_width=tape.width)
        layers.modulated_norm(rows + text_rows, is_modulated=is_modulated)
        outputs = frames * patch**2 * channels
        tape.linear(f"{name}.linear", width, outputs, rows + text_rows, input_width=tape.norm_width)


def _padded(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def _block(layers: Layers, name: str, batch: int, rows: int, *, has_modulation: bool = True) -> None:
    tape, width = layers.tape, layers.width
    inner, scaled = int(width / 3 * 8), width * rows
    with tape.block(scaled):
        is_modulated = has_modulation and tape.linear(
            f"{name}.adaLN_modulation.0", min(width, _MODULATION), 4 * width, batch, input_width=tape.width
        )
        modulated = scaled if is_modulated else 0
        diffusers_rms_norm(tape, width, rows)
        tape.keep(modulated, tape.width)
        layers.project(f"{name}.attention", IMAGE_PROJECTIONS, rows, input_width=tape.width)
        layers.attend(rows)
        layers.project_out(f"{name}.attention.to_out.0", rows)
        diffusers_rms_norm(tape, width, rows)
        tape.keep(modulated, tape.width)
        diffusers_rms_norm(tape, width, rows)
        tape.keep(modulated, tape.width)
        shared = tape.linear(f"{name}.feed_forward.w1", width, inner, rows, input_width=tape.width, bias=False)
        tape.linear(f"{name}.feed_forward.w3", width, inner, rows, input_width=tape.width, bias=False, is_kept=shared)
        tape.keep(3 * inner * rows, tape.width)  # the gate, its activation, and what it is multiplied with
        tape.linear(f"{name}.feed_forward.w2", inner, width, rows, input_width=tape.width, bias=False)
        tape.passing(3 * inner * rows * tape.width)
        diffusers_rms_norm(tape, width, rows)
        tape.keep(modulated, tape.width)
