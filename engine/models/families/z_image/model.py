"""Z-Image (Z-Image Team 2025, arXiv:2511.22699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from transformers import Qwen3Model

from engine.models.families.z_image.spec import SPEC, TEXT_LAYER
from engine.models.family import LoadArgs, Tensors
from engine.models.parts.qwen import encoder as qwen
from engine.models.parts.qwen.checks import TEXT
from engine.models.parts.qwen.tokens import CHAT
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.vae import AnyLatentsVAE, ImageModes


class ZImage(TransformerFamily):
    """A loaded Z-Image base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: Qwen3Model,
        VAE: AnyLatentsVAE,
        SPEC.denoiser: ZImageTransformer2DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self.tokenizer = qwen.load_tokenizer(args)

    @property
    def latents(self) -> ImageModes:
        return ImageModes(self.parts[VAE])

    def encode_fixed(self, caption: str) -> Tensors:
        """Return the states before the last layer, padded to a fixed length, and the number of tokens."""
        text, length = CHAT.format(caption), self._args.caption_tokens
        states, mask = qwen.encode(self.parts[TEXT], self.tokenizer, text, length=length, layers=[TEXT_LAYER])
        return qwen.of_fixed_length(states[mask], length)

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the prediction; the transformer itself is told how far it is from noise, and predicts x₀ - ε."""
        images = list(noisy.unsqueeze(2).unbind())
        found = self.denoiser(images, 1.0 - sigmas, qwen.of_own_lengths(conditioning)).sample
        return -torch.stack(found).squeeze(2)

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": qwen.of_own_lengths(encoded)}

    def webui_name(self, component: str, module: str) -> str:
        return f"diffusion_model.{module}"


def load(args: LoadArgs) -> ZImage:
    """Load the tokenizer and the scheduler; the parts with weights are loaded when needed. Raises ModelError."""
    return ZImage(args)
