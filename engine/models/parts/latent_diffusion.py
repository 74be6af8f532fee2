"""What Stable Diffusion's families share (Rombach et al. 2022, arXiv:2112.10752): CLIP's tokens, a VAE's latents, and
the training of a UNet that denoises them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from engine.models.family import Batch, LoadArgs, Tensors
from engine.models.objectives import diffusion


def token_ids(tokenizer: Any, caption: str, chunks: int = 1) -> torch.Tensor:
    """A caption's token ids, cut or padded to the encoder's full length: int64, shape (77,) for CLIP, on the CPU.

    With several chunks of shape (chunks, 77): the caption goes on in the next row after 75 tokens, wherever that is,
    each row has a start and an end of its own, and rows that nothing is left for are those of an empty caption. These
    are the rows that sd-scripts makes (`--max_token_length`, `_get_input_ids` in library/strategy_base.py), and ComfyUI
    of a prompt without weights (`tokenize_with_weights` in comfy/sd1_clip.py).
    """
    length = tokenizer.model_max_length
    # Always full-length rows: the bits must not depend on what else is encoded, or on its length.
    row = tokenizer("" if chunks > 1 else caption, max_length=length, padding="max_length", truncation=True).input_ids
    if chunks == 1:
        return torch.tensor(row)
    start, end, padding, room = row[0], row[1], row[-1], length - 2
    words = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    pieces = [[start, *words[room * k : room * (k + 1)], end] for k in range(chunks)]
    return torch.tensor([piece + [padding] * (length - len(piece)) for piece in pieces])


def encoder_rows(ids: torch.Tensor) -> torch.Tensor:
    """Stacked `token_ids` as a text encoder takes them: shape (B x chunks, 77)."""
    return ids.reshape(-1, ids.shape[-1])


def join_chunks(states: torch.Tensor, size: int) -> torch.Tensor:
    """The states of a batch of `size` captions' rows, one row after the other: shape (B, chunks x 77, width).

    Whole, with every start and end, as ComfyUI joins them (`encode_token_weights` in comfy/sd1_clip.py), where a LoRA
    is used; sd-scripts trains on one start and one end (chunks x 75 + 2 states).
    """
    return states.reshape(size, -1, states.shape[-1])


@torch.no_grad()
def embed_one(embed: Callable[[Tensors], Tensors], tokens: Tensors, device: torch.device) -> Tensors:
    """One sample's tokens to its conditioning, on the CPU: as a batch of one, so that its bits are its own."""
    conditioning = embed({name: ids.unsqueeze(0).to(device) for name, ids in tokens.items()})
    return {name: tensor[0].cpu() for name, tensor in conditioning.items()}


class ImageLatents:
    """A VAE as the training sees it: images to the moments of their latents, and latents drawn from these."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """(channels, height, width) of the latents of an image of this size in pixels."""
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        return (self._vae.config.latent_channels, height // factor, width // factor)

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """One image, uint8 (H, W, 3), to `mean` and `logvar`, in the VAE's dtype, on the CPU."""
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 127.5 - 1.0
        posterior = self._vae.encode(image.to(self._vae.device, self._vae.dtype)).latent_dist
        return {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}

    def sample(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Mean + standard deviation x noise, in float32 (Kingma & Welling 2014, arXiv:1312.6114, section 2.4)."""
        deviation = torch.exp(0.5 * moments["logvar"].to(torch.float32))
        drawn = moments["mean"].to(torch.float32) + deviation * noise
        latents: torch.Tensor = drawn * self._vae.config.scaling_factor
        return latents


class Objective:
    """The training loss of a UNet: the noise schedule, what is predicted, in which precision, on which device."""

    def __init__(self, scheduler_config: Mapping[str, Any], args: LoadArgs) -> None:
        """
        Raises:
            ModelError: a noise schedule that cannot be trained.
        """
        self.schedule = diffusion.NoiseSchedule.from_config(
            scheduler_config, zero_terminal_snr=args.zero_terminal_snr
        ).to(args.device)
        self._prediction_type = args.prediction_type
        self._device_type = args.device.type
        self._dtype = args.dtype

    def loss(
        self,
        unet: torch.nn.Module,
        batch: Batch,
        conditioning: Mapping[str, Any],
        *,
        snr_gamma: float | None,
        huber: diffusion.Huber | None,
    ) -> torch.Tensor:
        """The loss of one micro-batch: a float32 scalar.

        Args:
            unet: predicts `.sample` from noisy latents, timesteps and `conditioning`.
            batch: its own conditioning is not looked at.
            conditioning: the UNet's other arguments.
            snr_gamma: γ of Min-SNR weighting, None for none.
            huber: the Huber loss, None for the squared error.
        """
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        # A context for each micro-batch: across an optimizer step, autocast's cache would hold stale weights.
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype != torch.float32):
            prediction = unet(noisy.to(self._dtype), batch.timesteps, **conditioning).sample
        target = self.schedule.target(self._prediction_type, batch.latents, batch.noise, batch.timesteps)
        weights = None
        if snr_gamma is not None:
            weights = self.schedule.min_snr_weights(batch.timesteps, snr_gamma, self._prediction_type)
        errors = self.schedule.errors(batch.timesteps, huber)
        return diffusion.loss(prediction, target, weights, errors=errors, mask=batch.mask)
