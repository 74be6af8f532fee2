"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752): one family; the scheduler's configuration and
the text encoder's width are all that differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from engine.models.family import DENOISER, Batch, LoadArgs, Tensors
from engine.models.loading import load_module, load_scheduler, load_tokenizer, move_frozen
from engine.models.objectives.diffusion import Huber
from engine.models.parts.latent_diffusion import (
    ImageLatents,
    Objective,
    embed_one,
    encoder_rows,
    join_chunks,
    token_ids,
)

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry


class StableDiffusion:
    """A loaded Stable Diffusion 1.x or 2.x."""

    def __init__(self, args: LoadArgs) -> None:
        self.scheduler = load_scheduler(args)
        self.tokenizer = load_tokenizer(CLIPTokenizer, args, "tokenizer")
        self.text_encoder = load_module(CLIPTextModel, args, "text_encoder")
        self.text_encoders = {"text_encoder": self.text_encoder}
        self.vae = load_module(AutoencoderKL, args, "vae")
        self.denoiser = load_module(UNet2DConditionModel, args, "unet").to(args.device)
        self._latents = ImageLatents(self.vae)
        self._chunks = args.caption_chunks
        self.objective = Objective(self.scheduler.config, args)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return self._latents.shape(height, width)

    def encode_image(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return self._latents.encode(pixels)

    def encode_caption(self, caption: str) -> Tensors:
        return embed_one(self.embed, self.tokenize(caption), self.text_encoder.device)

    def tokenize(self, caption: str) -> Tensors:
        return {"input_ids": token_ids(self.tokenizer, caption, self._chunks)}

    def embed(self, tokens: Tensors) -> Tensors:
        ids = tokens["input_ids"]
        return {"encoder_hidden_states": join_chunks(self.text_encoder(encoder_rows(ids))[0], len(ids))}

    def place(self, geometry: Geometry) -> Tensors:
        return {}  # they are told nothing but the caption

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return self._latents.sample(moments, noise)

    def loss(self, batch: Batch, *, snr_gamma: float | None, huber: Huber | None = None) -> torch.Tensor:
        return self.objective.loss(self.denoiser, batch, batch.conditioning, snr_gamma=snr_gamma, huber=huber)

    def move_encoders(self, device: torch.device) -> None:
        self.vae.to(device)
        move_frozen(self.text_encoder, device)

    def pipeline(self) -> StableDiffusionPipeline:
        cls = StableDiffusionPipeline if self._chunks == 1 else _chunked_pipeline(self.encode_caption)
        return cls(
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
        prefix = {DENOISER: "lora_unet", "text_encoder": "lora_te"}[component]
        return f"{prefix}_{module.replace('.', '_')}"


def _chunked_pipeline(encode: Callable[[str], Tensors]) -> type[StableDiffusionPipeline]:
    """Its pipeline, which encodes prompts like captions."""

    class ChunkedPipeline(StableDiffusionPipeline):  # type: ignore[misc]  # Diffusers is not typed
        def encode_prompt(
            self, prompt: str, device: torch.device, num_images: int, guided: bool, negative: str | None, **_: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            found, other = (encode(text)["encoder_hidden_states"][None].to(device) for text in (prompt, negative or ""))
            return found, other

    return ChunkedPipeline


def load(args: LoadArgs) -> StableDiffusion:
    """Load all parts; the encoders stay on the CPU until they are moved."""
    return StableDiffusion(args)
