"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752): one family; the scheduler's configuration and
the text encoder's width are all that differs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .. import objectives
from .base import Batch, LoadArgs, Tensors
from .loading import load_module, load_scheduler, load_tokenizer


class StableDiffusion:
    """A loaded Stable Diffusion 1.x or 2.x."""

    def __init__(self, args: LoadArgs) -> None:
        self._args = args
        self.scheduler = load_scheduler(args)
        self.tokenizer = load_tokenizer(CLIPTokenizer, args, "tokenizer")
        self.text_encoder = load_module(CLIPTextModel, args, "text_encoder")
        self.vae = load_module(AutoencoderKL, args, "vae")
        self.denoiser = load_module(UNet2DConditionModel, args, "unet").to(args.device)
        self.schedule = objectives.NoiseSchedule.from_config(self.scheduler.config).to(args.device)

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        side = resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.latent_channels, side, side)

    @torch.no_grad()
    def encode_image(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 127.5 - 1.0
        posterior = self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist
        return {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}

    @torch.no_grad()
    def encode_caption(self, caption: str) -> Tensors:
        # Always one full-length row: the bits must not depend on what else is encoded, or on its length.
        tokens = self.tokenizer(
            caption,
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        states = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]
        return {"encoder_hidden_states": states[0].cpu()}

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Mean + standard deviation x noise, in float32 (Kingma & Welling 2014, arXiv:1312.6114, section 2.4)."""
        deviation = torch.exp(0.5 * moments["logvar"].to(torch.float32))
        latents: torch.Tensor = (moments["mean"].to(torch.float32) + deviation * noise) * self.vae.config.scaling_factor
        return latents

    def loss(self, batch: Batch, *, snr_gamma: float | None) -> torch.Tensor:
        prediction_type = self._args.prediction_type
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        dtype = self._args.dtype
        # A context for each micro-batch: across an optimizer step, autocast's cache would hold stale weights.
        with torch.autocast(self._args.device.type, dtype, enabled=dtype != torch.float32):
            prediction = self.denoiser(noisy.to(dtype), batch.timesteps, **batch.conditioning).sample
        target = self.schedule.target(prediction_type, batch.latents, batch.noise, batch.timesteps)
        weights = None
        if snr_gamma is not None:
            weights = self.schedule.min_snr_weights(batch.timesteps, snr_gamma, prediction_type)
        return objectives.loss(prediction, target, weights)

    def move_encoders(self, device: torch.device) -> None:
        self.vae.to(device)
        self.text_encoder.to(device)

    def pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def webui_name(self, component: str, module: str) -> str:
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
        return f"{prefix}_{module.replace('.', '_')}"


def load(args: LoadArgs) -> StableDiffusion:
    """Load all parts; the encoders stay on the CPU until they are moved."""
    return StableDiffusion(args)
