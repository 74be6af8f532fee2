"""Qwen-Image (Wu et al. 2025, arXiv:2508.02324)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.models.families.qwen_image.spec import INSTRUCTION_TOKENS, MOST_TOKENS, SPEC, TEMPLATE
from engine.models.family import LoadArgs, Tensors
from engine.models.parts.packing import SIDE, pack, unpack
from engine.models.parts.qwen import encoder as qwen
from engine.models.parts.qwen.checks import TEXT
from engine.models.parts.transformer_family import VAE, TransformerFamily
from engine.models.parts.vae import ImageLatents
from engine.task.plan.extent import Extent


class QwenLatents(ImageLatents):
    """A VAE of videos, which encodes an image as a video of one frame."""

    def shape(self, extent: Extent) -> tuple[int, ...]:
        factor = 2 ** len(self._vae.config.temperal_downsample)
        return (self._vae.config.z_dim, extent.height // factor, extent.width // factor)

    def posterior(self, image: torch.Tensor) -> Any:
        return super().posterior(image.unsqueeze(2))

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        return {name: moment[:, 0] for name, moment in super().encode(pixels).items()}

    def normalise(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return (drawn - mean) / standard deviation, which the configuration gives for each channel."""
        config = self._vae.config
        mean, deviation = (drawn.new_tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        return (drawn - mean) / deviation


class QwenImage(TransformerFamily):
    """A loaded Qwen-Image base model; methods as in `Family`."""

    spec = SPEC
    classes: ClassVar[Mapping[str, Any]] = {
        TEXT: Qwen2_5_VLForConditionalGeneration,
        VAE: AutoencoderKLQwenImage,  # its pipeline casts latents itself
        SPEC.denoiser: QwenImageTransformer2DModel,
    }

    def __init__(self, args: LoadArgs) -> None:
        super().__init__(args)
        self.tokenizer = qwen.load_tokenizer(args)

    @property
    def latents(self) -> QwenLatents:
        return QwenLatents(self.parts[VAE])

    def encode_fixed(self, caption: str) -> Tensors:
        """Return the last states of the caption and of what follows, padded to a fixed length, and their number."""
        states, _ = qwen.encode(
            self.parts[TEXT],
            self.tokenizer,
            TEMPLATE.format(caption),
            length=INSTRUCTION_TOKENS + MOST_TOKENS,  # as the pipeline does, which takes the first of these states
            layers=[-1],
            pads=False,
        )
        return qwen.of_fixed_length(states[INSTRUCTION_TOKENS:], self._args.caption_tokens)

    def predict(self, noisy: torch.Tensor, sigmas: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        height, width = noisy.shape[-2:]
        rows = qwen.of_own_lengths(conditioning)
        mask = torch.arange(max(map(len, rows)), device=noisy.device) < conditioning[qwen.LENGTH]
        tokens = self.denoiser(
            hidden_states=pack(noisy),
            timestep=sigmas,
            encoder_hidden_states=pad_sequence(rows, batch_first=True),
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // SIDE, width // SIDE)]] * len(noisy),
        ).sample
        return unpack(tokens, height, width)

    def prompt_arguments(self, encoded: Tensors) -> dict[str, Any]:
        (states,) = qwen.of_own_lengths(encoded)
        mask = states.new_ones((1, len(states)), dtype=torch.int64)
        return {"prompt_embeds": states[None], "prompt_embeds_mask": mask}

    def webui_name(self, component: str, module: str) -> str:
        return f"lora_unet_{module}".replace(".", "_")


def load(args: LoadArgs) -> QwenImage:
    """Load the tokenizer and the scheduler; the parts with weights are loaded when needed. Raises ModelError."""
    return QwenImage(args)
