"""FLUX.1 (Black Forest Labs, 2024): a transformer on packed latents, with T5's text states and CLIP's pooled text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from engine.models.families.flux.spec import SPEC
from engine.models.family import LoadArgs, Tensors
from engine.models.parts.clip import encoder as clip
from engine.models.parts.packing import image_ids, pack, unpack
from engine.models.parts.t5 import encoder as t5
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.vae import AnyLatentsVAE

CLIP, T5 = "text_encoder", "text_encoder_2"
STATES, POOLED = "encoder_hidden_states", "pooled_projections"


class Flux(TransformerFamily):
    """A loaded FLUX.1 base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        CLIP: CLIPTextModel,
        T5: T5EncoderModel,
        VAE: AnyLatentsVAE,
        SPEC.denoiser: FluxTransformer2DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self._clip_tokenizer = clip.load_tokenizer(args, "tokenizer")
        self._t5_tokenizer = t5.load_tokenizer(args, "tokenizer_2")

    def tokenize(self, caption: str) -> Tensors:
        return {CLIP: clip.token_ids(self._clip_tokenizer, caption)}

    def embed(self, tokens: Tensors) -> Tensors:
        """Return `pooled_projections` (B, CLIP's width): the last state of the end token."""
        return {POOLED: self.parts[CLIP](tokens[CLIP]).pooler_output}

    def encode_fixed(self, caption: str) -> Tensors:
        """Return `encoder_hidden_states` (tokens, T5's width)."""
        ids = t5.token_ids(self._t5_tokenizer, caption, self._args.caption_tokens)
        return {STATES: t5.encode(self.parts[T5], ids)}

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        height, width = noisy.shape[-2:]
        length, scale = conditioning[STATES].shape[1], self._args.guidance_scale
        transformer = cast(FluxTransformer2DModel, self.denoiser)
        tokens = transformer(
            hidden_states=pack(noisy),
            encoder_hidden_states=conditioning[STATES],
            pooled_projections=conditioning[POOLED],
            timestep=sigmas,  # the transformer multiplies by 1000 itself
            guidance=torch.full_like(sigmas, scale) if transformer.config.guidance_embeds else None,
            img_ids=image_ids(height, width, noisy.device),
            txt_ids=torch.zeros(length, 3, device=noisy.device),
        ).sample
        return unpack(tokens, height, width)

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": encoded[STATES], "pooled_prompt_embeds": encoded[POOLED]}


def load(args: LoadArgs) -> Flux:
    """Return the family. Its parts are loaded when they are needed. Raises ModelError."""
    return Flux(args)
