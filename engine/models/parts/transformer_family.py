"""The base class of the families with a transformer, trained by flow matching or by diffusion.

A subclass defines the classes of its components, how a caption is encoded, how its transformer is called, and how a
prompt is given to its pipeline. Prompts are encoded here: the pipeline has no text encoders, so that a text encoder,
larger than some denoisers, need not be in memory while images are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from engine.models.components.lazy_parts import LazyParts
from engine.models.family import Batch, Drawing, LoadArgs, Tensors
from engine.models.loading.modules import load_module, load_part, move_frozen
from engine.models.objectives import registry as objectives
from engine.models.objectives.losses import training_loss
from engine.models.objectives.objective import LossOptions
from engine.models.parts import pipelines
from engine.models.parts.clip.encoder import embed_one
from engine.models.parts.vae import ImageLatents
from engine.models.spec import FamilySpec
from engine.task.plan.extent import Extent

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

VAE: Final = "vae"


class TransformerFamily(ABC):
    """A loaded base model; methods as in `Family`."""

    spec: FamilySpec
    classes: ClassVar[Mapping[str, Any]]
    """Component with weights -> its class in Diffusers or transformers; that of the VAE casts the latents that it
    decodes (`vae.CastsLatents`)."""
    patch: ClassVar[int] = 2
    """The side of the square of latents that is one token of the transformer."""

    def __init__(self, args: LoadArgs) -> None:
        self._args = args
        self._dtype = args.dtype
        self._encoder_device = torch.device("cpu")
        self._prompts: dict[str, Tensors] = {}
        self.parts = LazyParts(self._load)
        self.scheduler = objectives.load_scheduler(self.spec.objective, args)
        self.objective = objectives.load(self.spec.objective, self.scheduler.config, args, patch=self.patch)

    # --- Defined by each family

    @abstractmethod
    def encode_fixed(self, caption: str) -> Tensors:
        """See `Family.encode_fixed`."""

    @abstractmethod
    def predict(self, noisy: torch.Tensor, time: torch.Tensor, conditioning: Tensors, /) -> torch.Tensor:
        """Return the transformer's prediction, in the shape of `noisy`.

        Args:
            noisy: noisy latents in the dtype of the frozen weights, shape (B, …).
            time: `Objective.model_time`, shape (B,): of flow matching noise levels, float32, not rounded; of diffusion
                timesteps, int64.
            conditioning: stacked results of `encode_caption`.
        """

    @abstractmethod
    def prompt_arguments(self, encoded: Tensors, /) -> dict[str, Any]:
        """Return the pipeline's keyword arguments for a prompt, from `encoded`.

        Those of a negative prompt have the same names after `negative_`.
        """

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        """The keyword arguments with which Diffusers' pipeline is made, besides its parts; most need none."""
        return {}

    def prompts(self, drawing: Drawing) -> dict[str, str]:
        """Return the prompts that the pipeline needs, by what the names of their arguments begin with.

        That is "" for the prompt, and `negative_` for the negative prompt, if there is guidance.
        """
        found = {"": drawing.prompt}
        if self.spec.takes_negative_prompt and drawing.guidance_scale > self.spec.no_guidance:
            found["negative_"] = drawing.negative_prompt or self.spec.empty_prompt
        return found

    def pipeline_arguments(self, drawing: Drawing) -> dict[str, Any]:
        """Return the pipeline's keyword arguments for the guidance, the prompts, and the frames of a clip."""
        found = {self.spec.argument_names.get("guidance_scale", "guidance_scale"): drawing.guidance_scale}
        if self.spec.has_frames:
            found["num_frames"] = drawing.frames
        for prefix, prompt in self.prompts(drawing).items():
            arguments = self.prompt_arguments(self.encoded(prompt))
            found |= {f"{prefix}{name}": value for name, value in arguments.items()}
        return found

    def tokenize(self, caption: str) -> Tensors:
        """See `Family.tokenize`; {} for a family of which no text encoder can be trained."""
        return {}

    def embed(self, tokens: Tensors) -> Tensors:
        """See `Family.embed`; {} for a family of which no text encoder can be trained."""
        return {}

    # --- The same in all families

    def _load(self, component: str) -> torch.nn.Module:
        # The VAE is small: in float32 no precision is lost before the training begins.
        args = replace(self._args, dtype=torch.float32) if component == VAE else self._args
        device = self._args.device if component == self.spec.denoiser else self._encoder_device
        return cast(torch.nn.Module, load_module(self.classes[component], args, component, device))

    @property
    def denoiser(self) -> Any:
        return self.parts[self.spec.denoiser]

    @property
    def text_encoders(self) -> Mapping[str, torch.nn.Module]:
        return {name: self.parts[name] for name in self.spec.text_encoders}

    @property
    def latents(self) -> ImageLatents:
        """The VAE, which is loaded if necessary."""
        return ImageLatents(self.parts[VAE])

    def load_part(self, component: str, folder: Path | None = None) -> torch.nn.Module:
        return cast(torch.nn.Module, load_part(self.classes[component], self._args, component, folder))

    def latent_shape(self, extent: Extent) -> tuple[int, ...]:
        return self.latents.shape(extent)

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return self.latents.encode(pixels)

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return self.latents.sample(moments, noise)

    def encode_caption(self, caption: str) -> Tensors:
        return self._embed_one(caption) | self.encode_fixed(caption)

    def _embed_one(self, caption: str) -> Tensors:
        """Return the part of a caption's conditioning that trained text encoders change, on the CPU."""
        tokens = self.tokenize(caption)
        if not tokens:
            return {}
        encoder = next(iter(self.text_encoders.values()))
        return embed_one(self.embed, tokens, next(encoder.parameters()).device)

    def place(self, geometry: Geometry) -> Tensors:
        return {}

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        def denoise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.predict(noisy, time, batch.conditioning)

        return training_loss(self.objective, denoise, batch, options, self._dtype)

    def move_encoders(self, device: torch.device) -> None:
        self._encoder_device = device
        for component in self.parts.keys() - {self.spec.denoiser}:
            move_frozen(self.parts[component], device)

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        self._prompts |= prompts

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        pipeline, arguments = self.make_pipeline(), self.pipeline_arguments(drawing)
        return pipelines.draw(pipeline, drawing, generator, after_step, arguments)

    def make_pipeline(self) -> Any:
        """Return Diffusers' pipeline, made of the parts in memory, without text encoders."""
        texts = (name for name in self.spec.components if name.startswith(("text_encoder", "tokenizer")))
        return getattr(diffusers, self.spec.pipeline)(
            scheduler=self.scheduler,
            vae=self.parts[VAE],
            **{self.spec.denoiser: self.denoiser},
            **dict.fromkeys(texts),
            **self.pipeline_settings,
        )

    def encoded(self, prompt: str) -> Tensors:
        """Return a prompt's conditioning (`encode_caption`) with a batch axis of 1, on the denoiser's device."""
        found = (self._prompts.get(prompt) or self.encode_fixed(prompt)) | self._embed_one(prompt)
        return {name: tensor[None].to(self._args.device) for name, tensor in found.items()}

    def webui_name(self, component: str, module: str) -> str:
        names = {self.spec.denoiser: "lora_transformer", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
        return f"{names[component]}_{module}".replace(".", "_")
