"""Check the configurations of a denoiser, a VAE and text encoders. No torch.

The checks run before heavy libraries are imported and before weights are downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.spec import Configs
from engine.task.plan.extent import Extent

_MOST: Final = {
    "layers_per_block": 1000,
    "transformer_layers_per_block": 1000,
    "reverse_transformer_layers_per_block": 1000,
    "num_hidden_layers": 1000,
    "num_layers": 1000,
    "num_single_layers": 1000,
    "n_layers": 1000,
    "n_refiner_layers": 1000,
    "num_refiner_layers": 1000,
    "num_res_blocks": 1000,
    "depth": 1000,
    "max_position_embeddings": 1 << 16,
    "vocab_size": 1 << 22,
}
"""Upper bounds of sizes that a module is built with before its weights are checked."""
_MOST_BLOCKS: Final = 64
_ROTATIONS: Final = "axes_dims_rope"


def require_bounds(config: Configs, *components: str) -> None:
    """Raise ModelError for excessive numbers of layers, and for values that training or validation cannot use."""
    for component in components:
        found = config(component)
        values = {key: found[key] for key in _MOST if found.get(key) is not None}
        wrong = [key for key, value in values.items() if not all(_is_count(n, _MOST[key]) for n in _flat(value))]
        wrong += [key for key, value in found.items() if isinstance(value, list) and len(value) > _MOST_BLOCKS]
        if component == "vae" and not _is_scale(found.get("scaling_factor", 1.0)):
            wrong.append("scaling_factor")
        if component.startswith("text_encoder") and type(found.get("eos_token_id", 0)) is not int:
            wrong.append("eos_token_id")
        if wrong:
            key = wrong[0]
            raise ModelError(
                f"the base model's {component}/config.json gives {key} as {str(found[key])[:40]!r}: download it again"
            )


def require_size(config: Configs, component: str, key: str, default: int) -> int:
    """Return a size in a component's configuration, or the default of its class.

    Raises:
        ModelError: it is not a positive whole number.
    """
    value = config(component).get(key, default)
    if type(value) is not int or value <= 0:
        raise ModelError(
            f"the base model's {component}/config.json gives {key} as {str(value)[:40]!r}: download it again"
        )
    return value


def require_shift(vae: Mapping[str, Any]) -> None:
    """Raise ModelError unless a VAE gives the shift that its latents need before they are scaled."""
    shift = vae.get("shift_factor")
    if not isinstance(shift, int | float) or isinstance(shift, bool) or not math.isfinite(shift):
        raise ModelError(
            f"the base model's vae/config.json gives shift_factor as {str(shift)[:40]!r}, a number is expected: "
            "it is the VAE of another model"
        )


def require_one_scale(vae: Mapping[str, Any], kind: str) -> None:
    """Raise ModelError if a VAE scales each channel of its latents separately; `kind` of models does not."""
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise ModelError(f"the base model's VAE scales each channel separately: it is not that of {kind}")


def require_channel_scales(config: Configs, key: str, default: int) -> None:
    """Check that the VAE gives a mean and a standard deviation for each channel of its latents.

    A configuration without them has the defaults of the class, for `default` channels.

    Args:
        config: the base model's configurations.
        key: where the VAE's configuration has the number of channels.
        default: that number if the configuration lacks it.

    Raises:
        ModelError: one is missing, or no number, or a standard deviation is not positive.
    """
    vae, channels = config("vae"), require_size(config, "vae", key, default)
    for name, lowest in (("latents_mean", -math.inf), ("latents_std", 0.0)):
        values = vae.get(name)
        if values is None and channels == default:
            continue
        if not isinstance(values, list) or len(values) != channels or not all(_is_above(n, lowest) for n in values):
            raise ModelError(
                f"the base model's vae/config.json gives {name} as {str(values)[:40]!r}, {channels} numbers are "
                "expected: download it again"
            )


def _is_above(value: Any, lowest: float) -> bool:
    return type(value) in (int, float) and lowest < value < math.inf


def require_rotations(config: Configs, *, axes: int) -> None:
    """Raise ModelError unless the rotations of the positions, on so many axes, fill a transformer's attention head."""
    width, found = require_size(config, "transformer", "attention_head_dim", 128), config("transformer").get(_ROTATIONS)
    if found is None:  # Diffusers' default, which fills Diffusers' default of a head
        return
    is_even = isinstance(found, list) and all(type(n) is int and n > 0 and n % 2 == 0 for n in found)
    if not is_even or len(found) != axes or sum(found) != width:
        raise ModelError(
            f"the base model's transformer/config.json has {_ROTATIONS} {str(found)[:40]} and attention_head_dim "
            f"{width}, which do not go together: download it again"
        )


def require_multiple(extent: Extent, multiple: int) -> None:
    """Raise TaskError unless an image's sides in pixels are multiples of a number."""
    if wrong := [side for side in extent.size if side % multiple]:
        below = max(1, wrong[0] // multiple) * multiple
        raise TaskError(
            f"train_args.resolution is {wrong[0]}: expected a multiple of {multiple} for this base model, such as "
            f"{below} or {below + multiple}"
        )


def whole_tokens(side: int) -> Callable[[Configs, Extent], None]:
    """Return a `FamilySpec.check_size` for tokens of `side` x `side` pixels."""
    return lambda config, extent: require_multiple(extent, side)


def require_text_width(config: Configs, key: str, default: int, given: int) -> None:
    """Raise ModelError unless the transformer takes text states of the width `given`.

    `key` is where the transformer's configuration has the width, `default` what it is without.
    """
    wanted = require_size(config, "transformer", key, default)
    if wanted != given:
        raise ModelError(
            f"the base model's transformer takes text of width {wanted}, its text encoder gives {given}: "
            "these parts are of different models"
        )


def require_channels(taken: int, given: int, latents: int, otherwise: str) -> None:
    """Raise ModelError unless a transformer takes and gives as many channels as the VAE's latents have.

    `otherwise` says in the message what the base model is then.
    """
    if not taken == given == latents:
        raise ModelError(
            f"the base model's transformer takes {taken} channels and gives {given}, its VAE's latents have {latents}: "
            f"{otherwise}"
        )


def _flat(value: Any) -> list[Any]:
    """Return the values of nested lists as one list."""
    return [inner for item in value for inner in _flat(item)] if isinstance(value, list) else [value]


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def require_text_to_image(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise ModelError unless the UNet's input and output have as many channels as the VAE's latents."""
    channels_in, channels_out = unet.get("in_channels", 4), unet.get("out_channels", 4)
    latent_channels = vae.get("latent_channels", 4)
    if channels_in != latent_channels or channels_out != latent_channels:
        raise ModelError(
            f"the base model's UNet takes {channels_in} channels and gives {channels_out}, its VAE has "
            f"{latent_channels}: text-to-image models can be trained, inpainting and depth models cannot"
        )
