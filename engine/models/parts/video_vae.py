"""Encode clips to latents with the VAE of a video model. An image is a clip of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.models.family import Tensors
from engine.models.parts.vae import ImageLatents
from engine.task.plan.extent import Extent, latent_frames


class VideoLatents(ImageLatents):
    """A VAE that encodes clips to the moments of their latents, and draws latents from them.

    Latents are normalised after they were drawn. A posterior whose mean and logarithm of the variance are normalised
    instead is another one.
    """

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
            scale: by what latents are multiplied (`scaling_factor`).
            mean: the mean of each channel, shape (C,), subtracted from latents; None for 0.
            deviation: the standard deviation of each channel, shape (C,), by which latents are divided; None for 1.
        """
        super().__init__(vae)
        self._channels, self._side, self._frames = channels, side, frames
        self._scale, self._mean, self._deviation = scale, mean, deviation

    def shape(self, extent: Extent) -> tuple[int, ...]:
        """Return the shape (channels, frames, height, width) of the latents of a clip of this size."""
        frames = latent_frames(extent.frames, self._frames)
        return (self._channels, frames, extent.height // self._side, extent.width // self._side)

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one clip, uint8 (F, H, W, 3), to `mean` and `logvar`, in the VAE's dtype, on the CPU."""
        clip = torch.from_numpy(pixels).permute(3, 0, 1, 2).unsqueeze(0).to(torch.float32).contiguous() / 127.5 - 1.0
        posterior = self.posterior(clip.to(self._vae.device, self._vae.dtype))
        return {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}

    def normalise(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return (drawn - mean) x scale / deviation, shape (C, F, H, W)."""
        if self._mean is not None:
            drawn = drawn - self._mean.to(drawn)[:, None, None, None]
        latents = drawn * self._scale
        return latents if self._deviation is None else latents / self._deviation.to(drawn)[:, None, None, None]


@contextmanager
def decoding_in_tiles(vae: Any) -> Iterator[None]:
    """Return a context in which a VAE decodes clips that are larger than its own tile in tiles, and blends them.

    Whether it does so depends on the size of the clip alone, never on the memory of a machine, so that a clip has the
    same bits everywhere. Clips are encoded outside of the context: `enable_tiling` would change how, too.
    """
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
