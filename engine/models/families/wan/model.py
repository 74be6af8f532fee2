"""Wan 2.1, and 2.2's model of 5 billion parameters (Wan Team 2025, arXiv:2503.20314)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from engine.core.errors import ModelError
from engine.models.components.files import INDEX
from engine.models.configs import read_json
from engine.models.families.wan.cleaning import clean
from engine.models.families.wan.spec import FRAMES, SPEC, original_name, reduction
from engine.models.family import Drawing, LoadArgs, Tensors
from engine.models.parts.t5 import encoder as t5
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.video_vae import VideoLatents

TEXT: Final = "text_encoder"
STATES: Final = "encoder_hidden_states"


class Wan(TransformerFamily):
    """A loaded Wan base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: UMT5EncoderModel,
        VAE: AutoencoderKLWan,  # its pipeline casts latents itself
        SPEC.denoiser: WanTransformer3DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self.tokenizer = t5.load_tokenizer(args, "tokenizer")
        if self.scheduler.config.get("use_dynamic_shifting"):
            raise ModelError(
                "the base model's scheduler has use_dynamic_shifting, with which Wan's pipeline cannot draw: set it to "
                "false in scheduler_config.json"
            )

    def _load(self, component: str) -> torch.nn.Module:
        module = super()._load(component)
        if component == self.spec.denoiser:
            # The class keeps this part in float32, whatever dtype is asked for; autocast would compute it in 16 bits.
            embedder: Any = module.get_submodule("condition_embedder.time_embedder")
            embedder.forward = torch.autocast(self._args.device.type, enabled=False)(embedder.forward)
        return module

    @property
    def latents(self) -> VideoLatents:
        vae: Any = self.parts[VAE]
        config = vae.config
        return VideoLatents(
            vae,
            channels=config.z_dim,
            side=reduction(config),
            frames=FRAMES,
            mean=torch.tensor(config.latents_mean),
            deviation=torch.tensor(config.latents_std),
        )

    def encode_fixed(self, caption: str) -> Tensors:
        """Return `encoder_hidden_states` (tokens, UMT5's width), of which those of the padding are 0."""
        ids, mask = t5.token_ids_and_mask(self.tokenizer, clean(caption), self._args.caption_tokens)
        states = t5.encode(self.parts[TEXT], ids, mask)
        states[~mask] = 0.0
        return {STATES: states}

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the prediction. Version 2.2 of 5 billion parameters is told the same noise level for all tokens."""
        prediction: torch.Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=sigmas * self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning[STATES],
        ).sample
        return prediction

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        index = read_json(self._args.folder / INDEX)
        return {"expand_timesteps": index.get("expand_timesteps", False) is True}

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": encoded[STATES]}

    def pipeline_arguments(self, drawing: Drawing) -> dict[str, Any]:
        return super().pipeline_arguments(drawing) | {"output_type": "pil"}

    def webui_name(self, component: str, module: str) -> str:
        return f"diffusion_model.{original_name(module)}"


def load(args: LoadArgs) -> Wan:
    """Load the tokenizer and the scheduler; the parts with weights are loaded when needed. Raises ModelError."""
    return Wan(args)
