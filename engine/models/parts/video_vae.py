"""Encode clips to latents with the VAE of a video model. An image is a clip of one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from engine.models.family import Tensors

if TYPE_CHECKING:
    from engine.data.media.geometry import Extent


class VideoLatents:
    """A VAE that encodes clips to the moments of their latents, and draws latents from them."""

    def __init__(
        self,
        vae: Any,
        *,
        channels: int,
        side: int,
        frames: int,
        scale: float = 1.0,
        mean: torch.Tensor | None = None,
        deviation: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            vae: Diffusers' module; the chunks in which it encodes a long clip are those of its class.
            channels: the channels of the latents.
            side: how many pixels of a side are one position of the latents.
            frames: how many frames after the first one are one frame of the latents.
            scale: by what normalised latents are multiplied (`scaling_factor`).
            mean: the mean of each channel, shape (C,), subtracted from latents; None for 0.
            deviation: the standard deviation of each channel, shape (C,), by which latents are divided; None for 1.
        """
        self._vae = vae
        self._channels, self._side, self._frames = channels, side, frames
        self._scale, self._mean, self._deviation = scale, mean, deviation

    def shape(self, extent: Extent) -> tuple[int, ...]:
        """Return the shape (channels, frames, height, width) of the latents of a clip of this extent."""
        frames = (extent.frames - 1) // self._frames + 1
        return (self._channels, frames, extent.height // self._side, extent.width // self._side)

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one clip, uint8 (F, H, W, 3), to `mean` and `logvar`, in the VAE's dtype, on the CPU."""
        clip = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].to(torch.float32).contiguous() / 127.5 - 1.0
        posterior = self._vae.encode(clip.to(self._vae.device, self._vae.dtype)).latent_dist
        return {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}

    def sample(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return mean + standard deviation x noise, normalised: float32.

        Kingma & Welling 2014, arXiv:1312.6114, section 2.4. What is normalised is the draw: a posterior whose mean and
        logarithm of the variance are each divided by `deviation` is another one.
        """
        spread = torch.exp(0.5 * moments["logvar"].to(torch.float32))
        return self.normalise(moments["mean"].to(torch.float32) + spread * noise)

    def normalise(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return (drawn - mean) x scale / deviation, shape (C, F, H, W)."""
        if self._mean is not None:
            drawn = drawn - self._mean.to(drawn)[:, None, None, None]
        latents = drawn * self._scale
        return latents if self._deviation is None else latents / self._deviation.to(drawn)[:, None, None, None]
