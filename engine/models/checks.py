"""What a base model's configurations must say, by family; read before anything heavy is imported or downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.core.errors import ModelError

MAX_TIMESTEPS: Final = 1_000_000
"""Of a noise schedule, which is built whole."""

Configs = Callable[[str], Mapping[str, Any]]
"""A component's name -> its config.json. A key that it leaves out has the default of Diffusers' or transformers'."""

_ADDED_WIDTH: Final = "projection_class_embeddings_input_dim"
_MOST: Final = {
    "layers_per_block": 1000,
    "transformer_layers_per_block": 1000,
    "reverse_transformer_layers_per_block": 1000,
    "num_hidden_layers": 1000,
    "max_position_embeddings": 1 << 16,
    "vocab_size": 1 << 22,
}
"""What is built before weights are looked at, layer by layer or whole: without end, if a configuration says so."""
_MOST_BLOCKS: Final = 64
_XL_BLOCKS: Final = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def stable_diffusion(config: Configs) -> None:
    """Refuse what shares Stable Diffusion's classes and is something else: inpainting, depth, XL's parts.

    Raises:
        ModelError: says what does not fit.
    """
    unet, text_encoder = config("unet"), config("text_encoder")
    _require_bounds(config, "unet", "vae", "text_encoder")
    _require_text_to_image(unet, config("vae"))
    wanted, given = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if wanted != given:
        raise ModelError(
            f"the base model's UNet expects text states of width {wanted}, its text encoder gives {given}: "
            "these parts do not belong together"
        )
    if unet.get("class_embed_type") or unet.get("addition_embed_type"):
        raise ModelError("the base model's UNet wants more than a caption: it is not a Stable Diffusion 1.x or 2.x")


def stable_diffusion_xl(config: Configs) -> None:
    """Refuse what shares Stable Diffusion XL's classes and is no base model: refiner, inpainting, distilled UNets.

    Raises:
        ModelError: says what does not fit.
    """
    unet, vae = config("unet"), config("vae")
    _require_bounds(config, "unet", "vae", "text_encoder", "text_encoder_2")
    _require_text_to_image(unet, vae)
    if unet.get("addition_embed_type") != "text_time":
        raise ModelError("the base model's UNet is not told the image's size: it is not a Stable Diffusion XL")
    _require_xl_widths(unet, config("text_encoder"), config("text_encoder_2"))
    if unet.get("time_cond_proj_dim") is not None:
        raise ModelError("the base model's UNet takes the guidance scale as input: distilled models cannot be trained")
    blocks = {str(name) for key in ("down_block_types", "up_block_types") for name in _listed(unet, key)}
    if unet.get("class_embed_type") or unet.get("encoder_hid_dim_type") or not blocks <= _XL_BLOCKS:
        raise ModelError("the base model's UNet has layers that Stable Diffusion XL's has not: it is another model")
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise ModelError("the base model's VAE scales each channel by itself: it is not Stable Diffusion XL's")


def has_float32_vae(config: Configs) -> bool:
    """Whether XL's VAE, which overflows in fp16, is in float32 in any precision: unless its configuration denies it."""
    return config("vae").get("force_upcast", True) is not False


def has_no_float32_vae(config: Configs) -> bool:
    """False: the VAE has the task's precision."""
    return False


def _require_bounds(config: Configs, *components: str) -> None:
    """Refuse towers of layers, and numbers that only the training's or the validation's arithmetic would stumble on."""
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


def _flat(value: Any) -> list[Any]:
    """A value, or those of a list of values or lists."""
    return [inner for item in value for inner in _flat(item)] if isinstance(value, list) else [value]


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _require_text_to_image(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    channels_in, channels_out = unet.get("in_channels", 4), unet.get("out_channels", 4)
    latent_channels = vae.get("latent_channels", 4)
    if channels_in != latent_channels or channels_out != latent_channels:
        raise ModelError(
            f"the base model's UNet takes {channels_in} channels and gives {channels_out}, its VAE has "
            f"{latent_channels}: text-to-image models can be trained, inpainting and depth models cannot"
        )


def _require_xl_widths(unet: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Text states of both encoders side by side; the pooled text, and six numbers, in the added embedding."""
    wanted = _width("unet", unet, "cross_attention_dim", 1280)
    each, added = (_width("unet", unet, key) for key in ("addition_time_embed_dim", _ADDED_WIDTH))
    states = _width("text_encoder", first, "hidden_size", 512) + _width("text_encoder_2", second, "hidden_size", 512)
    pooled = _width("text_encoder_2", second, "projection_dim", 512)
    if added == 5 * each + pooled:
        raise ModelError(
            "the base model's UNet is told an aesthetic score: it is Stable Diffusion XL's refiner, "
            "which is not trained by itself; name the base model that it belongs to"
        )
    if wanted != states or added != 6 * each + pooled:
        raise ModelError(
            f"the base model's UNet expects text states of width {wanted} and a pooled text of width {added - 6 * each}"
            f", its text encoders give {states} and {pooled}: these parts do not belong together"
        )


def _width(component: str, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int):
        raise ModelError(f"the base model's {component}/config.json gives {key} as {value!r}: download it again")
    return value


def _listed(config: Mapping[str, Any], key: str) -> list[Any]:
    value = config.get(key)
    return value if isinstance(value, list) else []
