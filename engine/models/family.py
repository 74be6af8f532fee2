"""The interface of a loaded base model: its parts, encodings, loss and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.models.components.place import Place
from engine.models.objectives.objective import LossOptions, TargetType
from engine.models.single_file import SingleFile
from engine.models.spec import FamilySpec
from engine.task.plan.extent import Extent
from engine.task.task import MixedPrecision, Quantization

if TYPE_CHECKING:
    from engine.data.media.geometry import Geometry

Tensors = dict[str, torch.Tensor]

PRECISIONS: Final[Mapping[MixedPrecision, torch.dtype]] = {
    "no": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Mixed precision -> the dtype of frozen weights and of autocast."""


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which operations on the device are computed in `dtype`; float32 switches autocast off.

    Use a new context for each micro-batch: its cache of cast weights must not outlive an optimizer step.
    """
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadArgs:
    """The arguments for loading a base model."""

    folder: Path
    variants: Mapping[str, str | None]
    absent: frozenset[str] = frozenset()
    """The optional components (`FamilySpec.optional`) that the base model does not have."""
    dtype: torch.dtype
    """The dtype of all frozen weights."""
    float32: frozenset[str] = frozenset()
    """The components that are loaded in float32, whatever `dtype` is, because their weights are trained."""
    quantised: Mapping[str, Quantization] = field(default_factory=dict)
    """The components of which the linear layers in blocks are quantised, with the format."""
    offloaded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The components of which the blocks stay in main memory until they compute, with the names of their lists."""
    device: torch.device
    prediction_type: TargetType
    single_file: SingleFile | None = None
    """The file that holds the weights and configurations; None for a model in `folder`."""
    elsewhere: Mapping[str, Place] = field(default_factory=dict)
    """The places of components that are not in `folder` or `single_file`, by name."""
    zero_terminal_snr: bool = False
    """True rescales the noise schedule to zero terminal SNR, for training and for the pipeline."""
    caption_tokens: int
    """The number of tokens in which each caption, and each prompt of the pipeline, is encoded; see
    `FamilySpec.caption_tokens`."""
    flow_shift: float | Literal["resolution"] | None = None
    """The shift of a flow objective's noise levels, as in the task; None is that of the base model's scheduler."""
    frame_rate: float | None = None
    """The frames per second of the training's clips; None is what is usual for the family."""
    guidance_scale: float = 1.0
    """The guidance scale that a guidance-distilled denoiser is told in training."""
    require_unchanged: Callable[[], None] = lambda: None
    """Called after a component was loaded. Raises ModelError if the base model's files are not those that were hashed.
    """

    def place(self, component: str) -> Place:
        """Return where a component lies."""
        own = Place(component=component, folder=self.folder / component, single_file=self.single_file)
        return self.elsewhere.get(component, own)

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """Return one of a component's JSON files; {} for an optional component that the base model does not have.

        Raises:
            ModelError: missing or malformed.
        """
        return {} if component in self.absent else self.place(component).config(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch on the device; the first axis of every tensor is the batch."""

    latents: torch.Tensor
    """Clean, scaled latents: float32, shape (B, …)."""
    noise: torch.Tensor
    """Standard normal noise: dtype and shape of `latents`."""
    timesteps: torch.Tensor
    """int64, shape (B,)."""
    conditioning: Tensors
    """The stacked results of the family's `encode_caption` and `place`."""
    mask: torch.Tensor | None = None
    """Weights of the latents' positions: float32, broadcastable to the latents; None weights all positions equally."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """The settings of one validation image or clip."""

    prompt: str
    negative_prompt: str | None
    guidance_scale: float
    num_inference_steps: int
    size: tuple[int, int]
    """(width, height) in pixels."""
    frames: int = 1
    """The frames of a clip; 1 draws an image."""
    frame_rate: float | None = None
    """The frames per second of a clip."""
    not_finite: Callable[[str], None] = field(default=lambda part: None, compare=False)
    """Called after the drawing with the part that computed values which are not finite, if one did: `denoiser`, whose
    cause may also be a text encoder, or `VAE`. The pixels mean nothing then."""


class Family(Protocol):
    """A loaded base model."""

    spec: FamilySpec
    parts: MutableMapping[str, torch.nn.Module]
    """The modules with weights that are in memory, by component; one that is not in memory is loaded when asked for.
    One of `spec.fixed_text_encoders` is freed when it is removed: the family keeps no other reference to it."""

    @property
    def denoiser(self) -> torch.nn.Module:
        """The module that predicts the target: `parts[spec.denoiser]`."""
        ...

    @property
    def text_encoders(self) -> Mapping[str, torch.nn.Module]:
        """The text encoders that can be trained (`train_args.train_text_encoder`), by component."""
        ...

    def load_part(self, component: str, folder: Path | None = None) -> torch.nn.Module:
        """Load a component with weights again, on the CPU.

        Args:
            component: its name.
            folder: a folder in Diffusers' layout, from which it is loaded in float32; None loads it from the base
                model's files, in the dtype of the frozen weights.

        Raises:
            ModelError: its weights are missing, malformed, or of another shape than in its configuration.
        """
        ...

    def latent_shape(self, extent: Extent) -> tuple[int, ...]:
        """Return the shape of one sample's latents: (channels, height, width), for clips (channels, frames, height,
        width)."""
        ...

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensors:
        """Encode one image, uint8 (H, W, 3), or one clip, uint8 (F, H, W, 3), to the moments of its latents.

        The moments are on the CPU. They must not depend on other images.
        """
        ...

    def encode_caption(self, caption: str) -> Tensors:
        """Encode one caption to the conditioning of one sample, on the CPU.

        This is `encode_fixed`, and `embed` of a batch of one `tokenize`, without gradients, with the text encoders'
        current weights. The result must not depend on other captions.
        """
        ...

    def encode_fixed(self, caption: str) -> Tensors:
        """Encode one caption with the text encoders that are never trained: a part of `encode_caption`'s result.

        It has other keys than `embed`, and is {} where all text encoders can be trained.
        """
        ...

    def tokenize(self, caption: str) -> Tensors:
        """Return a caption's token ids, int64 on the CPU, for one sample of `embed`."""
        ...

    def embed(self, tokens: Tensors) -> Tensors:
        """Encode a batch of stacked `tokenize` results on the device to its conditioning there, with gradients."""
        ...

    def place(self, geometry: Geometry) -> Tensors:
        """Return a sample's conditioning on its geometry (sizes, crop), on the CPU; {} for most families."""
        ...

    def sample_latents(self, moments: Tensors, noise: torch.Tensor) -> torch.Tensor:
        """Return latents drawn from an image's posterior with standard normal `noise`, scaled for the denoiser."""
        ...

    def loss(self, batch: Batch, options: LossOptions) -> torch.Tensor:
        """Return the training loss of one micro-batch: a float32 scalar."""
        ...

    def move_encoders(self, device: torch.device) -> None:
        """Move the encoders to a device, except for text encoders that are trained."""
        ...

    def remember(self, prompts: Mapping[str, Tensors]) -> None:
        """Keep the conditioning of prompts for `draw`, which then does not need text encoders that are never trained.

        Args:
            prompts: prompt -> its result of `encode_caption`, or of `encode_fixed` if text encoders are trained.
        """
        ...

    def draw(
        self, drawing: Drawing, generator: torch.Generator, after_step: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        """Draw one image or clip with the parts in memory: uint8, shape (frames, H, W, 3).

        Prompts are encoded like captions.

        Args:
            drawing: the prompt and the settings.
            generator: on the CPU; the image depends on its state.
            after_step: called after each denoising step; an exception that it raises ends the drawing.
        """
        ...

    def webui_name(self, component: str, module: str) -> str:
        """Return the name of a module in the web interfaces' LoRA format.

        Args:
            component: the denoiser or a text encoder.
            module: the module's name in the component, as in Diffusers' LoRA files.
        """
        ...
