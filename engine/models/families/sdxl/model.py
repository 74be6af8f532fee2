"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, and a UNet that is also told the
pooled text, the image's size before it was resized, and what of it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.models.checks import has_float32_vae
from engine.models.configs import read_json
from engine.models.family import DENOISER, Batch, LoadArgs, Tensors
from engine.models.loading import load_module, load_scheduler, load_tokenizer, move_frozen, read_config
from engine.models.objectives.diffusion import Huber
from engine.models.parts.latent_diffusion import (
    ImageLatents,
    Objective,
    embed_one,
    encoder_rows,
    join_chunks,
    token_ids,
)
from engine.models.parts.sgm_names import SgmNames

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

FIRST, SECOND = "text_encoder", "text_encoder_2"


class StableDiffusionXL:
    """A loaded Stable Diffusion XL base model."""

    def __init__(self, args: LoadArgs) -> None:
        self._forces_zeros = _forces_zeros(args)
        self.scheduler = load_scheduler(args)
        self.tokenizers = {
            FIRST: load_tokenizer(CLIPTokenizer, args, "tokenizer"),
            SECOND: load_tokenizer(CLIPTokenizer, args, "tokenizer_2"),
        }
        self.text_encoders = {
            FIRST: load_module(CLIPTextModel, args, FIRST),
            SECOND: load_module(CLIPTextModelWithProjection, args, SECOND),
        }
        self.vae = _load_vae(args)
        self.denoiser = load_module(UNet2DConditionModel, args, "unet").to(args.device)
        self.objective = Objective(self.scheduler.config, args)
        self._latents = ImageLatents(self.vae)
        self._chunks = args.caption_chunks
        self._sgm_names = SgmNames.from_config(self.denoiser.config)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return self._latents.shape(height, width)

    def encode_image(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return self._latents.encode(pixels)

    def encode_caption(self, caption: str) -> Tensors:
        return embed_one(self.embed, self.tokenize(caption), self.text_encoders[FIRST].device)

    def tokenize(self, caption: str) -> Tensors:
        return {name: token_ids(tokenizer, caption, self._chunks) for name, tokenizer in self.tokenizers.items()}

    def embed(self, tokens: Tensors) -> Tensors:
        """`encoder_hidden_states` (B, 77, both encoders' widths) and the second one's `text_embeds` (B, its width).

        The states are those before the last layer, the pooled text is the projected one (section 2.1). With several
        chunks the states are B x (77 chunks), the pooled text is that of the first, as in sd-scripts
        (library/strategy_sdxl.py) and ComfyUI (`first_pooled` in comfy/sd1_clip.py).
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
        """`time_ids`: original height and width, the crop's top and left, target height and width (section 2.2).

        In pixels, float32, shape (6,). The crop's corner is that in the resized image, as it is shown: mirrored, where
        the visit mirrors it.
        """
        (width, height), (target_width, target_height) = geometry.original, geometry.target
        left = geometry.left
        if geometry.flip:
            left = geometry.resized[0] - target_width - left
        ids = [height, width, geometry.top, left, target_height, target_width]
        return {"time_ids": torch.tensor(ids, dtype=torch.float32)}

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        return self._latents.sample(moments, noise)

    def loss(self, batch: Batch, *, snr_gamma: float | None, huber: Huber | None = None) -> torch.Tensor:
        added = {name: batch.conditioning[name] for name in ("text_embeds", "time_ids")}
        states = batch.conditioning["encoder_hidden_states"]
        conditioning = {"encoder_hidden_states": states, "added_cond_kwargs": added}
        return self.objective.loss(self.denoiser, batch, conditioning, snr_gamma=snr_gamma, huber=huber)

    def move_encoders(self, device: torch.device) -> None:
        self.vae.to(device)
        for encoder in self.text_encoders.values():
            move_frozen(encoder, device)

    def pipeline(self) -> StableDiffusionXLPipeline:
        cls = StableDiffusionXLPipeline if self._chunks == 1 else _chunked_pipeline(self.encode_caption)
        return cls(
            vae=self.vae,
            text_encoder=self.text_encoders[FIRST],
            text_encoder_2=self.text_encoders[SECOND],
            tokenizer=self.tokenizers[FIRST],
            tokenizer_2=self.tokenizers[SECOND],
            unet=self.denoiser,
            scheduler=self.scheduler,
            # Of the negative prompt that nobody gives, not of an image's empty caption.
            force_zeros_for_empty_prompt=self._forces_zeros,
            add_watermarker=False,  # it would depend on what else is installed
        )

    def webui_name(self, component: str, module: str) -> str:
        name = self._sgm_names.name(module) if component == DENOISER else module
        prefix = {DENOISER: "lora_unet", FIRST: "lora_te1", SECOND: "lora_te2"}[component]
        return f"{prefix}_{name}".replace(".", "_")


def _chunked_pipeline(encode: Callable[[str], Tensors]) -> type[StableDiffusionXLPipeline]:
    """Its pipeline, which encodes prompts like captions."""

    class ChunkedPipeline(StableDiffusionXLPipeline):  # type: ignore[misc]  # Diffusers is not typed
        def encode_prompt(
            self, prompt: str, *, device: torch.device, negative_prompt: str | None, **_: Any
        ) -> tuple[torch.Tensor, ...]:
            found, other = encode(prompt), encode(negative_prompt or "")
            if negative_prompt is None and self.config.force_zeros_for_empty_prompt:
                other = {name: torch.zeros_like(tensor) for name, tensor in other.items()}
            order = [(own, name) for name in ("encoder_hidden_states", "text_embeds") for own in (found, other)]
            return tuple(own[name][None].to(device) for own, name in order)

    return ChunkedPipeline


def _forces_zeros(args: LoadArgs) -> bool:
    """What the model's index says, or Diffusers' default where it says nothing; a single file has no index."""
    index = args.folder / "model_index.json"
    # An index that happens to lie beside a single file is another model's.
    found = read_json(index) if args.single_file is None and index.is_file() else {}
    return bool(found.get("force_zeros_for_empty_prompt", True))


class _AnyLatentsVAE(AutoencoderKL):  # type: ignore[misc]  # Diffusers is not typed
    """Decodes latents of any precision in its own. The pipeline hands over the UNet's."""

    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().decode(z.to(self.dtype), *args, **kwargs)


def _load_vae(args: LoadArgs) -> AutoencoderKL:
    """The VAE: in float32, whatever the task's precision, unless its configuration says that half of it is enough."""
    is_float32 = has_float32_vae(lambda component: read_config(args, component))
    return load_module(_AnyLatentsVAE, replace(args, dtype=torch.float32) if is_float32 else args, "vae")


def load(args: LoadArgs) -> StableDiffusionXL:
    """Load all parts; the encoders stay on the CPU until they are moved."""
    return StableDiffusionXL(args)
