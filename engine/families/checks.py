"""What a base model's configurations must say, by family; read before anything heavy is imported or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ModelError

Configs = Callable[[str], Mapping[str, Any]]
"""A component's name -> its config.json."""


def stable_diffusion(config: Configs) -> None:
    """Refuse what shares Stable Diffusion's classes and is something else: inpainting, depth, XL's parts.

    A key that config.json leaves out has the default of Diffusers' or transformers' class.

    Raises:
        ModelError: says what does not fit.
    """
    unet, vae, text_encoder = config("unet"), config("vae"), config("text_encoder")
    channels_in, channels_out = unet.get("in_channels", 4), unet.get("out_channels", 4)
    latent_channels = vae.get("latent_channels", 4)
    if channels_in != latent_channels or channels_out != latent_channels:
        raise ModelError(
            f"the base model's UNet takes {channels_in} channels and gives {channels_out}, its VAE has "
            f"{latent_channels}: text-to-image models can be trained, inpainting and depth models cannot"
        )
    wanted, given = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if wanted != given:
        raise ModelError(
            f"the base model's UNet expects text states of width {wanted}, its text encoder gives {given}: "
            "these parts do not belong together"
        )
    if unet.get("class_embed_type") or unet.get("addition_embed_type"):
        raise ModelError("the base model's UNet wants more than a caption: it is not a Stable Diffusion 1.x or 2.x")
