"""Encode images to latents with an `AutoencoderKL` (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from engine.models.family import Tensors
from engine.task.plan.extent import Extent


class ImageLatents:
    """A VAE that encodes images to the moments of their latents, and draws latents from them."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def shape(self, extent: Extent) -> tuple[int, ...]:
        """Return the shape (channels, height, width) of the latents of an image of this size in pixels."""
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        return (self._vae.config.latent_channels, extent.height // factor, extent.width // factor)

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one image, uint8 (H, W, 3), to `mean` and `logvar`, in the VAE's dtype, on the CPU."""
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 127.5 - 1.0
        posterior = self.posterior(image.to(self._vae.device, self._vae.dtype))
        return {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}

    def posterior(self, image: torch.Tensor) -> Any:
        """Return the distribution of the latents of one image, shape (1, 3, H, W)."""
        return self._vae.encode(image).latent_dist

    def sample(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return mean + standard deviation x noise, normalised: float32.

        Kingma & Welling 2014, arXiv:1312.6114, section 2.4.
        """
        deviation = torch.exp(0.5 * moments["logvar"].to(torch.float32))
        return self.normalise(moments["mean"].to(torch.float32) + deviation * noise)

    def normalise(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return (drawn - shift) x scale; the VAE's configuration gives both."""
        if shift := self._vae.config.get("shift_factor"):
            drawn = drawn - shift
        latents: torch.Tensor = drawn * self._vae.config.scaling_factor
        return latents


class ImageModes(ImageLatents):
    """A VAE of which each image's latents are the mode of their distribution, its mean: no noise is added to them."""

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one image, uint8 (H, W, 3), to `mean`, in the VAE's dtype, on the CPU."""
        return {"mean": super().encode(pixels)["mean"]}

    def sample(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return the mean, normalised: float32."""
        return self.normalise(moments["mean"].to(torch.float32))


class CastsLatents:
    """Casts latents to the VAE's dtype before it decodes them: pipelines pass those of the denoiser's dtype."""

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        vae: Any = super()
        return vae.decode(z.to(vae.dtype), *args, **kwargs)


class AnyLatentsVAE(CastsLatents, AutoencoderKL):  # type: ignore[misc]  # Diffusers is not typed
    """An `AutoencoderKL` that decodes latents of any dtype."""
