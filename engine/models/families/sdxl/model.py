"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952). It has two text encoders, and its UNet is also
conditioned on the pooled text embedding, the image's original size, the crop and the target size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from engine.models.configs import read_json
from engine.models.families.sdxl.spec import SPEC, has_float32_vae
from engine.models.family import Batch, Drawing, LoadArgs, Tensors
from engine.models.loading.modules import load_module, load_part, move_frozen
from engine.models.objectives import registry as objectives
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.objectives.losses import training_loss
from engine.models.objectives.objective import LossOptions
from engine.models.parts import pipelines
from engine.models.parts.clip.encoder import embed_one, encoder_rows, join_chunks, load_tokenizer, token_ids
from engine.models.parts.clip.tokens import num_chunks
from engine.models.parts.vae import AnyLatentsVAE, ImageLatents
from engine.models.single_file.sgm_names import SgmNames
from engine.task.plan.extent import Extent

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

FIRST, SECOND = SPEC.text_encoders
_CLASSES: Final = {FIRST: CLIPTextModel, SECOND: CLIPTextModelWithProjection, "unet": UNet2DConditionModel}
"""The classes of the components that can be trained."""


class StableDiffusionXL:
    """A loaded Stable Diffusion XL base model; methods as in `Family`."""

    spec = SPEC

    def __init__(self, args: LoadArgs) -> None:
        self._forces_zeros = _forces_zeros(args)
        self.scheduler = load_scheduler(args)
        self.tokenizers = {
            FIRST: load_tokenizer(args, "tokenizer"),
            SECOND: load_tokenizer(args, "tokenizer_2"),
        }
        self.text_encoders = {name: load_module(_CLASSES[name], args, name) for name in SPEC.text_encoders}
        self.vae = _load_vae(args)
        self.denoiser = load_module(_CLASSES["unet"], args, "unet", args.device)
        self.parts = {**self.text_encoders, "vae": self.vae, "unet": self.denoiser}
        self.objective = objectives.load(SPEC.objective, self.scheduler.config, args)
        self._latents = ImageLatents(self.vae)
        self._args = args
        self._chunks = num_chunks(args.caption_tokens)
        self._dtype = args.dtype
        self._sgm_names = SgmNames.from_config(self.denoiser.config)

    def load_part(self, component: str, folder: Path | None = None) -> torch.nn.Module:
        return cast(torch.nn.Module, load_part(_CLASSES[component], self._args, component, folder))

    def latent_shape(self, extent: Extent) -> tuple[int, ...]:
        return self._latents.shape(extent)

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return self._latents.encode(pixels)

    def encode_caption(self, caption: str) -> Tensors:
        return embed_one(self.embed, self.tokenize(caption), self.text_encoders[FIRST].device)

    def encode_fixed(self, caption: str) -> Tensors:
        return {}  # all text encoders can be trained

    def tokenize(self, caption: str) -> Tensors:
        return {name: token_ids(tokenizer, caption, self._chunks) for name, tokenizer in self.tokenizers.items()}

    def embed(self, tokens: Tensors) -> Tensors:
        """Return `encoder_hidden_states` (B, 77, both encoders' widths) and the second's `text_embeds` (B, its width).

        The hidden states are those before the last layer, the pooled text is projected (section 2.1). With several
        chunks the states have shape (B, chunks x 77, widths), and the pooled text is that of the first chunk, as in
        sd-scripts (library/strategy_sdxl.py) and ComfyUI (`first_pooled` in comfy/sd1_clip.py).
        """
        size = len(tokens[FIRST])
        outputs = {
            name: encoder(encoder_rows(tokens[name]), output_hidden_states=True)
            for name, encoder in self.text_encoders.items()
        }
        states = torch.cat([output.hidden_states[-2] for output in outputs.values()], dim=-1)
        pooled = outputs[SECOND].text_embeds[:: self._chunks]
        return {"encoder_hidden_states": join_chunks(states, size), "text_embeds": pooled}

    def place(self, geometry: Geometry) -> Tensors:
        """Return `time_ids`: original height and width, crop top and left, target height and width (section 2.2).

        In pixels, float32, shape (6,). The crop's corner is that in the resized image, mirrored if the visit mirrors
        the image.
        """
        (width, height), (target_width, target_height) = geometry.original, geometry.target
        left = geometry.left
        if geometry.flip:
            left = geometry.resized[0] - target_width - left
        ids = [height, width, geometry.top, left, target_height, target_width]
        return {"time_ids": torch.tensor(ids, dtype=torch.float32)}

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return self._latents.sample(moments, noise)

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        added = {name: batch.conditioning[name] for name in ("text_embeds", "time_ids")}
        states = batch.conditioning["encoder_hidden_states"]

        def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            prediction: torch.Tensor = self.denoiser(
                noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added
            ).sample
            return prediction

        return training_loss(self.objective, denoise, batch, options, self._dtype)

    def move_encoders(self, device: torch.device) -> None:
        self.vae.to(device)
        for encoder in self.text_encoders.values():
            move_frozen(encoder, device)

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        """See `Family.remember`: the text encoders stay in memory."""

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        return pipelines.draw(self.pipeline, drawing, generator, after_step)

    @cached_property
    def pipeline(self) -> StableDiffusionXLPipeline:
        """Diffusers' pipeline, made of the parts in memory. It encodes prompts like captions."""
        cls: Any = StableDiffusionXLPipeline
        if self._chunks > 1:
            cls = pipelines.encoding_chunks(cls, self.encode_caption, ("encoder_hidden_states", "text_embeds"))
        return cls(
            vae=self.vae,
            text_encoder=self.text_encoders[FIRST],
            text_encoder_2=self.text_encoders[SECOND],
            tokenizer=self.tokenizers[FIRST],
            tokenizer_2=self.tokenizers[SECOND],
            unet=self.denoiser,
            scheduler=self.scheduler,
            # Concerns a missing negative prompt, not an image's empty caption.
            force_zeros_for_empty_prompt=self._forces_zeros,
            add_watermarker=False,  # its default depends on installed packages
        )

    def webui_name(self, component: str, module: str) -> str:
        name = self._sgm_names.name(module) if component == "unet" else module
        prefix = {"unet": "lora_unet", FIRST: "lora_te1", SECOND: "lora_te2"}[component]
        return f"{prefix}_{name}".replace(".", "_")


def _forces_zeros(args: LoadArgs) -> bool:
    """Return `force_zeros_for_empty_prompt` of the model's index, or Diffusers' default; a single file has no index."""
    index = args.folder / "model_index.json"
    # An index in the folder of a single file belongs to another model.
    found = read_json(index) if args.single_file is None and index.is_file() else {}
    return bool(found.get("force_zeros_for_empty_prompt", True))


def _load_vae(args: LoadArgs) -> AutoencoderKL:
    """Load the VAE: in float32, whatever the task's precision, unless its configuration allows half precision."""
    is_float32 = has_float32_vae(args.config)
    return load_module(AnyLatentsVAE, replace(args, dtype=torch.float32) if is_float32 else args, "vae")


def load(args: LoadArgs) -> StableDiffusionXL:
    """Load all parts. The encoders stay on the CPU until `move_encoders`. Raises ModelError."""
    return StableDiffusionXL(args)
