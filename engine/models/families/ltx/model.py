"""LTX-Video (HaCohen et al. 2024, arXiv:2501.00103)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from transformers import T5EncoderModel

from engine.models.families.ltx.spec import FRAMES, SIDE, SPEC
from engine.models.family import Drawing, LoadArgs, Tensors
from engine.models.parts import pipelines
from engine.models.parts.t5 import encoder as t5
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.video_vae import VideoLatents

TEXT: Final = "text_encoder"
STATES, MASK = "encoder_hidden_states", "encoder_attention_mask"
_WEBUI_NAMES: Final = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}
"""Outer names of Diffusers' modules -> those of the original model."""


class LTX(TransformerFamily):
    """A loaded LTX-Video base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: T5EncoderModel,
        VAE: AutoencoderKLLTXVideo,  # its pipeline casts latents itself
        SPEC.denoiser: LTXVideoTransformer3DModel,
    }
    patch = 1  # a token is one position of the latents

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self.tokenizer = t5.load_tokenizer(args, "tokenizer")

    @property
    def latents(self) -> VideoLatents:
        vae = self.parts[VAE]
        assert isinstance(vae, AutoencoderKLLTXVideo)
        return VideoLatents(
            vae,
            channels=vae.config.latent_channels,
            side=SIDE,
            frames=FRAMES,
            scale=vae.config.scaling_factor,
            mean=vae.latents_mean,
            deviation=vae.latents_std,
        )

    def encode_fixed(self, caption: str) -> Tensors:
        """Return `encoder_hidden_states` (tokens, T5's width), and which of them are the caption's: bool, (tokens,)."""
        ids, mask = t5.token_ids_and_mask(self.tokenizer, caption, self._args.caption_tokens)
        return {STATES: t5.encode(self.parts[TEXT], ids), MASK: mask}

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        frames, height, width = noisy.shape[-3:]
        tokens: torch.Tensor = self.denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning[STATES],
            encoder_attention_mask=conditioning[MASK],
            timestep=sigmas * self.scheduler.config.num_train_timesteps,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(FRAMES / self._frame_rate(self._args.frame_rate), SIDE, SIDE),
        ).sample
        return tokens.transpose(1, 2).reshape(noisy.shape)

    def _frame_rate(self, wanted: float | None) -> float:
        """Return the frames per second by which the transformer is told when a frame is."""
        assert SPEC.frame_rate is not None
        return wanted or SPEC.frame_rate

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        return {"prompt_embeds": encoded[STATES], "prompt_attention_mask": encoded[MASK]}

    def pipeline_arguments(self, drawing: Drawing) -> dict[str, Any]:
        return super().pipeline_arguments(drawing) | {"frame_rate": self._frame_rate(drawing.frame_rate)}

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        """See `Family.draw`. The VAE of version 0.9.1 draws noise of its own, by torch's global seed."""
        pipeline, arguments = self.make_pipeline(), self.pipeline_arguments(drawing)  # loading draws numbers, too
        device = self._args.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())  # noqa: TID251  # no argument of the VAE takes a generator
            return pipelines.draw(pipeline, drawing, generator, after_step, arguments)

    def webui_name(self, component: str, module: str) -> str:
        outer, dot, inner = module.partition(".")
        return f"diffusion_model.{_WEBUI_NAMES.get(outer, outer)}{dot}{inner}"


def load(args: LoadArgs) -> LTX:
    """Load the tokenizer and the scheduler; the parts with weights are loaded when needed. Raises ModelError."""
    return LTX(args)
