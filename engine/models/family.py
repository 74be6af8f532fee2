"""The protocol of a loaded base model: its parts, encodings, loss and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.models.objectives.objective import LossOptions
from engine.models.single_file import SingleFile
from engine.models.spec import FamilySpec
from engine.task.task import MixedPrecision, PredictionType

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

Tensors = dict[str, torch.Tensor]

PRECISIONS: Final[Mapping[MixedPrecision, torch.dtype]] = {
    "no": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The dtype of frozen weights and of autocast."""


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which operations on the device are computed in `dtype`; float32 computes as it is written.

    A context is for one micro-batch: its cache of cast weights must not outlive an optimizer step.
    """
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


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
    """Clean, scaled latents, float32, of any rank."""
    noise: torch.Tensor
    """Like `latents`."""
    timesteps: torch.Tensor
    """int64, shape (B,)."""
    conditioning: Tensors
    """Whatever the family's `encode_caption` and `place` gave, stacked."""
    mask: torch.Tensor | None = None
    """Weights of places, float32, broadcasting to the latents; None weighs them alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How an image is drawn."""

    prompt: str
    negative_prompt: str | None
    guidance_scale: float
    num_inference_steps: int
    size: tuple[int, int]
    """(width, height) in pixels."""


class Family(Protocol):
    """A loaded base model."""

    spec: FamilySpec
    parts: Mapping[str, torch.nn.Module]
    """Everything with weights, by component."""
    denoiser: torch.nn.Module
    """The part that is trained: `parts[spec.denoiser]`."""
    text_encoders: Mapping[str, torch.nn.Module]
    """The parts that `train_args.train_text_encoder` trains, too: those that `spec.text_encoders` names."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one sample's latents for images of this size in pixels."""
        ...

    def encode_image(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one image, uint8 (H, W, 3), to the moments of its latents, on the CPU. Independent of other images."""
        ...

    def encode_caption(self, caption: str) -> Tensors:
        """Encode one caption to the conditioning of one sample, on the CPU. Independent of other captions.

        That is `embed` of one sample of `tokenize`, without gradients, by the text encoders as they are.
        """
        ...

    def tokenize(self, caption: str) -> Tensors:
        """Return a caption's token ids, int64 on the CPU, for one sample of `embed`."""
        ...

    def embed(self, tokens: Tensors) -> Tensors:
        """Encode a batch of stacked `tokenize` ids on the device to its conditioning there, with gradients."""
        ...

    def place(self, geometry: Geometry) -> Tensors:
        """Return the conditioning that comes from how a sample's image is shown, on the CPU; often none."""
        ...

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return latents drawn from an image's posterior with standard normal noise, scaled for the denoiser."""
        ...

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        """Return the training loss of one micro-batch: a float32 scalar."""
        ...

    def move_encoders(self, device: torch.device) -> None:
        """Move the encoders to a device, except text encoders that are trained."""
        ...

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        """Draw one image from the parts in memory: uint8 (frames, H, W, 3). Prompts are encoded like captions.

        Args:
            drawing: what is drawn.
            generator: on the CPU; the image depends on its state.
            after_step: called after each denoising step; what it raises ends the drawing.
        """
        ...

    def webui_name(self, component: str, module: str) -> str:
        """Return the name of a module in the web interfaces' LoRA format.

        Args:
            component: the denoiser or a text encoder.
            module: the module's name in it as Diffusers' LoRA files have it.
        """
        ...
