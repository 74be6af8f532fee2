"""HunyuanVideo (Kong et al. 2024, arXiv:2412.03603)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import CLIPTextModel, LlamaModel, PreTrainedTokenizerFast

from engine.core.errors import ModelError
from engine.models.families.hunyuan_video import webui
from engine.models.families.hunyuan_video.spec import INSTRUCTION_TOKENS, SPEC, TEMPLATE, TEXT_LAYER
from engine.models.family import LoadArgs, Tensors
from engine.models.loading.tokenizers import load_tokenizer
from engine.models.parts.clip import encoder as clip
from engine.models.parts.qwen import encoder as language_model
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.video_vae import VideoLatents

LLAMA, CLIP = SPEC.fixed_text_encoders
STATES, MASK, POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
_SCALE: Final = 1000.0
"""The time at the noise level 1, and the transformer's number for the guidance scale 1."""


class HunyuanVideo(TransformerFamily):
    """A loaded HunyuanVideo base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        LLAMA: LlamaModel,
        CLIP: CLIPTextModel,
        VAE: AutoencoderKLHunyuanVideo,  # its pipeline casts latents itself
        SPEC.denoiser: HunyuanVideoTransformer3DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        # The file as it is: transformers' class for Llama splits words as Llama 2 does, this is a tokenizer of Llama 3.
        self._tokenizer = load_tokenizer(PreTrainedTokenizerFast, args, "tokenizer")
        if self._tokenizer.pad_token is None:
            raise ModelError("the base model's tokenizer has no pad_token: it is not that of HunyuanVideo")
        if self.scheduler.config.get("use_dynamic_shifting"):
            raise ModelError(
                "the base model's scheduler has use_dynamic_shifting, with which HunyuanVideo's pipeline cannot draw: "
                "set it to false in scheduler_config.json"
            )
        self._clip_tokenizer = clip.load_tokenizer(args, "tokenizer_2")

    @property
    def latents(self) -> VideoLatents:
        """The VAE, which encodes clips of more than 16 frames in pieces and blends them, as in the pipeline."""
        config = self.parts[VAE].config
        assert isinstance(config, Mapping)
        return VideoLatents(
            self.parts[VAE],
            channels=config["latent_channels"],
            side=config["spatial_compression_ratio"],
            frames=config["temporal_compression_ratio"],
            scale=config["scaling_factor"],
        )

    def encode_fixed(self, caption: str) -> Tensors:
        """Return the text states of a language model, which of them are no padding, and CLIP's pooled text.

        Shapes: `encoder_hidden_states` (tokens, width), `encoder_attention_mask` int64 (tokens,),
        `pooled_projections` (CLIP's width,).
        """
        states, mask = language_model.encode(
            self.parts[LLAMA],
            self._tokenizer,
            TEMPLATE.format(caption),
            length=INSTRUCTION_TOKENS + self._args.caption_tokens,
            layers=[TEXT_LAYER],
        )
        return {
            STATES: states[INSTRUCTION_TOKENS:].clone(),
            MASK: mask[INSTRUCTION_TOKENS:].to(torch.int64),
            POOLED: self._pooled(caption),
        }

    @torch.no_grad()
    def _pooled(self, caption: str) -> torch.Tensor:
        encoder = self.parts[CLIP]
        ids = clip.token_ids(self._clip_tokenizer, caption)[None]
        pooled: torch.Tensor = encoder(ids.to(next(encoder.parameters()).device)).pooler_output[0]
        return pooled.cpu()

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        guidance = torch.full_like(sigmas, self._args.guidance_scale * _SCALE)
        prediction: torch.Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=sigmas * _SCALE,
            encoder_hidden_states=conditioning[STATES],
            encoder_attention_mask=conditioning[MASK],
            pooled_projections=conditioning[POOLED],
            guidance=guidance if self.denoiser.config.guidance_embeds else None,
        ).sample
        return prediction

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {
            "prompt_embeds": encoded[STATES],
            "prompt_attention_mask": encoded[MASK],
            "pooled_prompt_embeds": encoded[POOLED],
        }

    def webui_name(self, component: str, module: str) -> str:
        return f"diffusion_model.{webui.name(module)}"


def load(args: LoadArgs) -> HunyuanVideo:
    """Return the family. Its parts are loaded when they are needed. Raises ModelError."""
    return HunyuanVideo(args)
