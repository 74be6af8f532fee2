"""What a model family answers for: its parts, its physics and its names. The rest of the engine knows no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.models.objectives.diffusion import Huber
from engine.models.registry import DENOISER as DENOISER  # noqa: PLC0414  # who imports this module needs it
from engine.models.single_file import SingleFile
from engine.task.task import MixedPrecision, PredictionType

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

Tensors = dict[str, torch.Tensor]

PRECISIONS: Final[Mapping[MixedPrecision, torch.dtype]] = {
    "no": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Of frozen weights and of autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadArgs:
    """How to load a base model."""

    folder: Path
    variants: Mapping[str, str | None]
    dtype: torch.dtype
    """Of all frozen weights."""
    device: torch.device
    prediction_type: PredictionType
    single_file: SingleFile | None = None
    """Where the weights and configurations are when they are not in `folder`."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule, in training and for the pipeline."""
    caption_chunks: int = 1
    """Rows of tokens that each caption, and each prompt of the pipeline, is encoded in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch on the device; the first axis of every tensor is the batch."""

    latents: torch.Tensor
    """Clean, scaled latents, float32. Never assumed to be 4-D outside a family."""
    noise: torch.Tensor
    """Like `latents`."""
    timesteps: torch.Tensor
    """int64, shape (B,)."""
    conditioning: Tensors
    """Whatever the family's `encode_caption` and `place` gave, stacked."""
    mask: torch.Tensor | None = None
    """Weights of places, float32, broadcasting to the latents; None weighs them alike."""


class Family(Protocol):
    """A loaded base model."""

    denoiser: torch.nn.Module
    """What the adapter is attached to."""
    text_encoders: Mapping[str, torch.nn.Module]
    """What it is attached to, too, where they are trained; by their names in Diffusers' LoRA files: `text_encoder`,
    `text_encoder_2`."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of one sample's latents for images of this size in pixels."""
        ...

    def encode_image(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """One image, uint8 (H, W, 3), to the moments of its latents, on the CPU. Independent of other images."""
        ...

    def encode_caption(self, caption: str) -> Tensors:
        """One caption to the conditioning of one sample, on the CPU. Independent of other captions.

        `embed` of one sample of `tokenize`, without gradients; by the text encoders as they are.
        """
        ...

    def tokenize(self, caption: str) -> Tensors:
        """One caption to the token ids of one sample, int64 on the CPU, keyed as `embed` wants them."""
        ...

    def embed(self, tokens: Tensors) -> Tensors:
        """A batch of `tokenize`'s ids, stacked, on the device, to its conditioning there; with gradients."""
        ...

    def place(self, geometry: Geometry) -> Tensors:
        """The conditioning of one sample that comes from how its image is shown, on the CPU; often none."""
        ...

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Latents drawn from an image's posterior with the given standard normal noise, scaled for the denoiser."""
        ...

    def loss(self, batch: Batch, *, snr_gamma: float | None, huber: Huber | None = None) -> torch.Tensor:
        """The training loss of one micro-batch: a float32 scalar."""
        ...

    def move_encoders(self, device: torch.device) -> None:
        """Bring the encoders to the training device, or free it of them. A text encoder that is trained stays."""
        ...

    def pipeline(self) -> Any:
        """Diffusers' pipeline for this model, from the parts already in memory. It encodes prompts like captions."""
        ...

    def webui_name(self, component: str, module: str) -> str:
        """The name of a module in the web interfaces' LoRA format.

        Args:
            component: `unet`, `text_encoder` or `text_encoder_2`.
            module: the module's name in it as Diffusers' LoRA files have it, `text_model.` included.
        """
        ...
