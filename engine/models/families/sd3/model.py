"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206). They have two CLIP text encoders, which can be
trained, and T5, which cannot, and which a model may be without."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from engine.models.families.sd3.spec import SPEC, T5
from engine.models.family import LoadArgs, Tensors
from engine.models.parts.clip import encoder as clip
from engine.models.parts.t5 import encoder as t5
from engine.models.parts.transformer_family import TransformerFamily
from engine.models.parts.vae import AnyLatentsVAE

_TIME_SCALE = 1000
"""The transformer's timestep at the noise level 1."""


class StableDiffusion3(TransformerFamily):
    """A loaded Stable Diffusion 3 base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar = {
        **dict.fromkeys(SPEC.text_encoders, CLIPTextModelWithProjection),
        T5: T5EncoderModel,
        "vae": AnyLatentsVAE,
        "transformer": SD3Transformer2DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self._tokenizers = {
            name: clip.load_tokenizer(args, name.replace("text_encoder", "tokenizer")) for name in SPEC.text_encoders
        }
        self._t5_tokenizer = None if T5 in args.absent else t5.load_tokenizer(args, "tokenizer_3")

    def tokenize(self, caption: str) -> Tensors:
        return {name: clip.token_ids(tokenizer, caption) for name, tokenizer in self._tokenizers.items()}

    def embed(self, tokens: Tensors) -> Tensors:
        """Return `clip_states` (B, 77, both encoders' widths) and `pooled_projections` (B, both projections' widths).

        The states are those before the last layer (section 4 of the paper).
        """
        outputs = [encoder(tokens[name], output_hidden_states=True) for name, encoder in self.text_encoders.items()]
        return {
            "clip_states": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
            "pooled_projections": torch.cat([output.text_embeds for output in outputs], dim=-1),
        }

    def encode_fixed(self, caption: str) -> Tensors:
        """Return `t5_states` (`caption_tokens`, T5's width); {} without T5, whose states are then zeros."""
        if self._t5_tokenizer is None:
            return {}
        ids = t5.token_ids(self._t5_tokenizer, caption, self._args.caption_tokens)
        return {"t5_states": t5.encode(self.parts[T5], ids)}

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        prediction: torch.Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=sigmas * _TIME_SCALE,
            encoder_hidden_states=self._text_states(conditioning),
            pooled_projections=conditioning["pooled_projections"],
        ).sample
        return prediction

    def _text_states(self, conditioning: Tensors) -> torch.Tensor:
        """Return the states of CLIP, padded to T5's width, and then those of T5: (B, 77 + length, T5's width)."""
        states, width = conditioning["clip_states"], self.denoiser.config.joint_attention_dim
        states = functional.pad(states, (0, width - states.shape[-1]))
        others = conditioning.get("t5_states")
        if others is None:
            others = states.new_zeros(len(states), self._args.caption_tokens, width)
        return torch.cat([states, others], dim=-2)

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        dtype = self.denoiser.dtype
        return {
            "prompt_embeds": self._text_states(encoded).to(dtype),
            "pooled_prompt_embeds": encoded["pooled_projections"].to(dtype),
        }


def load(args: LoadArgs) -> StableDiffusion3:
    """Return the model, whose parts are loaded when they are needed. Raises ModelError."""
    return StableDiffusion3(args)
