"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752). They are one family: only the scheduler's
configuration and the text encoder differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from engine.models.families.sd.spec import SPEC
from engine.models.family import Batch, Drawing, LoadArgs, Tensors
from engine.models.loading.modules import load_module, load_part, move_frozen
from engine.models.objectives import registry as objectives
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.objectives.losses import training_loss
from engine.models.objectives.objective import LossOptions
from engine.models.parts import pipelines
from engine.models.parts.clip.encoder import embed_one, encoder_rows, join_chunks, load_tokenizer, token_ids
from engine.models.parts.clip.tokens import num_chunks
from engine.models.parts.vae import ImageLatents
from engine.task.plan.extent import Extent

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry


_CLASSES: Final = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}


class StableDiffusion:
    """A loaded Stable Diffusion 1.x or 2.x base model; methods as in `Family`."""

    spec = SPEC

    def __init__(self, args: LoadArgs) -> None:
        self.scheduler = load_scheduler(args)
        self.tokenizer = load_tokenizer(args, "tokenizer")
        self.text_encoder = load_module(_CLASSES["text_encoder"], args, "text_encoder")
        self.text_encoders = {"text_encoder": self.text_encoder}
        self.vae = load_module(_CLASSES["vae"], args, "vae")
        self.denoiser = load_module(_CLASSES["unet"], args, "unet", args.device)
        self.parts = {**self.text_encoders, "vae": self.vae, "unet": self.denoiser}
        self.objective = objectives.load(SPEC.objective, self.scheduler.config, args)
        self._latents = ImageLatents(self.vae)
        self._args = args
        self._chunks = num_chunks(args.caption_tokens)
        self._dtype = args.dtype

    def load_part(self, component: str, folder: Path | None = None) -> torch.nn.Module:
        return cast(torch.nn.Module, load_part(_CLASSES[component], self._args, component, folder))

    def latent_shape(self, extent: Extent) -> tuple[int, ...]:
        return self._latents.shape(extent)

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return self._latents.encode(pixels)

    def encode_caption(self, caption: str) -> Tensors:
        return embed_one(self.embed, self.tokenize(caption), self.text_encoder.device)

    def encode_fixed(self, caption: str) -> Tensors:
        return {}  # all text encoders can be trained

    def tokenize(self, caption: str) -> Tensors:
        return {"input_ids": token_ids(self.tokenizer, caption, self._chunks)}

    def embed(self, tokens: Tensors) -> Tensors:
        ids = tokens["input_ids"]
        return {"encoder_hidden_states": join_chunks(self.text_encoder(encoder_rows(ids))[0], len(ids))}

    def place(self, geometry: Geometry) -> Tensors:
        return {}  # this family is conditioned on the caption only

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return self._latents.sample(moments, noise)

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            prediction: torch.Tensor = self.denoiser(noisy, timesteps, **batch.conditioning).sample
            return prediction

        return training_loss(self.objective, denoise, batch, options, self._dtype)

    def move_encoders(self, device: torch.device) -> None:
        self.vae.to(device)
        move_frozen(self.text_encoder, device)

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        """See `Family.remember`: the text encoders stay in memory."""

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        return pipelines.draw(self.pipeline, drawing, generator, after_step)

    @cached_property
    def pipeline(self) -> StableDiffusionPipeline:
        """Diffusers' pipeline, made of the parts in memory. It encodes prompts like captions."""
        cls: Any = StableDiffusionPipeline
        if self._chunks > 1:
            cls = pipelines.encoding_chunks(cls, self.encode_caption, ("encoder_hidden_states",))
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
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
        return f"{prefix}_{module.replace('.', '_')}"


def load(args: LoadArgs) -> StableDiffusion:
    """Load all parts. The encoders stay on the CPU until `move_encoders`. Raises ModelError."""
    return StableDiffusion(args)
