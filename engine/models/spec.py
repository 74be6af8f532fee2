"""The description of a model family, which does not import torch: a row of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.core.errors import TaskError
from engine.models.objectives.objective import TargetType
from engine.models.parts.tape import Tape
from engine.models.single_file import SingleFile
from engine.task.plan.extent import Extent
from engine.task.task import Dataset, TimestepSampling, Validation

Configs = Callable[[str], Mapping[str, Any]]
"""Maps a component's name to its config.json, which is empty for an optional component that the base model does not
have. A missing key has the default of Diffusers or transformers."""


class TokenCounter(Protocol):
    """A counter of captions' tokens, with the base model's tokenizer."""

    limit: int
    """Tokens that a caption may have, start and end not counted, as `dataset.max_caption_tokens` counts them."""

    def count(self, caption: str) -> int:
        """Return the number of tokens of a caption, start and end not counted."""
        ...


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """The numbers of tokens in which a family encodes captions: the values of `dataset.max_caption_tokens`."""

    usual: int
    """The number where the task gives none."""
    most: int
    step: int
    """Each number is a multiple of it."""
    least: int = 1
    """The smallest number that has room for a token of the caption beside those that the family adds."""

    def of(self, dataset: Dataset) -> int:
        """Return the number of tokens for a task's dataset."""
        return self.usual if dataset.max_caption_tokens is None else dataset.max_caption_tokens

    def unusual(self, dataset: Dataset) -> int | None:
        """Return the number of tokens in multiples of `step`, by which caches tell encodings apart; None if usual."""
        found = self.of(dataset)
        return None if found == self.usual else found // self.step

    def require(self, dataset: Dataset) -> None:
        """Raise TaskError if a task asks for a number that the family does not allow."""
        wanted = self.of(dataset)
        if self.least <= wanted <= self.most and wanted % self.step == 0:
            return
        allowed = f"a number from {self.least} to {self.most}"
        if self.step > 1:
            allowed = f"one of {', '.join(map(str, range(self.step, self.most + 1, self.step)))}"
        raise TaskError(
            f"dataset.max_caption_tokens is {wanted}: expected {allowed} for this base model, or null for {self.usual}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingDefaults:
    """The settings of validation images; in a family's row those that are usual for it."""

    guidance_scale: float
    num_inference_steps: int

    def of(self, validation: Validation) -> DrawingDefaults:
        """Return a task's settings, which are these where it gives none."""
        scale, steps = validation.guidance_scale, validation.num_inference_steps
        return DrawingDefaults(
            guidance_scale=self.guidance_scale if scale is None else scale,
            num_inference_steps=self.num_inference_steps if steps is None else steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The properties of a task on which the memory of a training depends."""

    batch: int
    resolution: int
    """Height and width of the images in pixels."""
    frames: int = 1
    """Frames of the clips; 1 for images."""
    caption_tokens: int
    """See `LoadArgs.caption_tokens`."""
    value_bytes: int
    """Bytes of a value in the task's precision."""
    is_float16: bool
    """True for fp16, in which some models keep weights in float32."""
    trains_text_encoders: bool
    denoiser: Tape
    """The record of the denoiser's training step."""
    text_encoders: Tape
    """The record of a training step of all text encoders that can be trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoder:
    """The memory footprint of the module that encodes images to latents and decodes them."""

    parameters: int
    weight_bytes: int
    encode_bytes: int
    """Peak bytes while one image is encoded, without the weights."""
    decode_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """The memory footprint of a text encoder that is never trained."""

    parameters: int
    weight_bytes: int
    encode_bytes: int
    """Peak bytes while one caption is encoded, without the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory footprint of what a family never trains. What it may train is on the tapes of the workload."""

    images: ImageEncoder
    encoders: tuple[TextEncoder, ...] = ()
    """The text encoders that are never trained, without optional ones that the base model does not have."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self.images.parameters + sum(encoder.parameters for encoder in self.encoders)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """A family's row in the registry."""

    pipeline: str
    """Diffusers' pipeline class: `_class_name` in `model_index.json`."""
    module: str
    """The name of the module with `load(args: LoadArgs) -> Family`, which may import torch."""
    other_pipelines: Mapping[str, str] = field(default_factory=dict)
    """The pipelines of base models that may be taken for one of this family and cannot be trained -> what they are, for
    the message that refuses them."""
    components: tuple[str, ...]
    """The sub-folders of the base model that training and validation need."""
    weighted: tuple[str, ...]
    """The components that hold weights."""
    optional: tuple[str, ...] = ()
    """The components that a base model may be without: null in `model_index.json`."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Component -> the classes that it may be of, by `model_index.json`. Components that are not named may be of any:
    their configurations decide."""
    denoiser: str
    """The denoiser's component, in Diffusers' folders and in LoRA files."""
    text_encoders: tuple[str, ...]
    """The components that are trained with `train_args.train_text_encoder`."""
    block_lists: tuple[str, ...] = ()
    """The names of the denoiser's lists of blocks, in the order in which they compute, if gradient checkpointing
    computes each block again as a whole: such blocks can be offloaded (`train_args.offload`)."""
    lora_targets: tuple[str, ...] | str
    """The denoiser's layers that get an adapter with `lora.target_modules: null`: the task's words for them."""
    text_lora_targets: tuple[str, ...]
    """The layers of a trained text encoder that get an adapter."""
    fixed_text_encoders: tuple[str, ...] = ()
    """The text encoders that are never trained."""
    text_root: str | None
    """The outer name of a text encoder's layers in LoRA files, which its class may lack; None for no outer name."""
    objective: str
    """A key of `objectives.registry.OBJECTIVES`."""
    medium: str
    """The medium of the samples: a key of `engine.data.media.registry.MEDIA`."""
    check: Callable[[Configs], None]
    """Raises ModelError if the configurations are not those of this family."""
    check_size: Callable[[Configs, Extent], None] = lambda config, extent: None
    """Raises TaskError if images or clips of a size, with sides that are multiples of 8, cannot be trained."""
    frame_step: int = 1
    """A family of clips takes frame_step x k + 1 frames."""
    frame_rate: float | None = None
    """The usual number of frames per second of a family of clips; None for images."""
    webui_metadata: Callable[[Configs, TargetType], dict[str, str]]
    """Returns the metadata on the base model for LoRA files in the web interfaces' format."""
    has_webui: bool = True
    """False if no web interface has models of this family: no LoRA file in that format is written."""
    webui_rows: Callable[[Configs, str], tuple[int, int] | None] | None = None
    """Returns which rows a layer of the denoiser is of a larger layer in the web interfaces, several of which have the
    same `Family.webui_name`: the row that its first one is, and the number of rows of all of it, the first of which
    follow the last one; None for a layer of its own. None itself if all layers are layers of their own."""
    token_counter: Callable[[Path, SingleFile | None, int], TokenCounter | None]
    """Returns the token counter for a model's folder or single file and the task's number of tokens; None if the
    tokenizer is not on disk. Raises ModelError for a malformed tokenizer."""
    caption_tokens: CaptionTokens
    """The allowed values of `dataset.max_caption_tokens`."""
    drawing: DrawingDefaults
    """The settings of validation images that are usual for the family."""
    hub_tags: tuple[str, ...]
    """The tags of the family's models on the Hub, for the model card."""
    licences: Mapping[str, str]
    """The licence of well-known base models: Hub ID -> the Hub's identifier of the licence."""
    footprint: Callable[[Configs, Workload], Footprint]
    """Records a training step on the tapes of the workload, and returns the rest. Raises KeyError, TypeError,
    ValueError, IndexError or AttributeError if the configurations do not give the sizes of the model."""
    usual_sampling: TimestepSampling | None = None
    """The sampling of a flow family's timesteps where the task names none; None for other objectives."""
    token_side: int = 16
    """The side in pixels of the square of an image that is one token of the denoiser: with `usual_sampling`, the number
    of tokens decides how far noise levels are shifted."""
    schedulers: frozenset[str] = frozenset()
    """Diffusers' schedulers with which the family's pipeline draws; empty for all those of the objective."""
    empty_prompt: str = ""
    """The negative prompt of a validation image where a task gives none, if the pipeline takes one. Model cards name it
    unless it is empty, which pipelines take themselves."""
    takes_guidance: Callable[[Configs], bool] = lambda config: False
    """Returns whether the denoiser is distilled on guidance, so that it is told `train_args.guidance_scale`."""
    no_guidance: float = 1.0
    """The guidance scale up to which the pipeline draws without guidance, so that a negative prompt has no effect."""
    takes_negative_prompt: bool = True
    """False if the pipeline draws without a negative prompt: `validation.negative_prompt` is refused."""
    argument_names: Mapping[str, str] = field(default_factory=dict)
    """`guidance_scale` -> the pipeline's name for it, where that is another one; `prompt` -> `prompt`, where the prompt
    is not the pipeline's first argument; `frame_rate` -> `frame_rate`, where the pipeline is told that of a clip."""
    refine: Callable[[Configs], FamilySpec] | None = None
    """Returns the row for one base model, if configurations decide what is usual for it; None for this row."""

    @property
    def has_frames(self) -> bool:
        """True if samples and validation images are clips, of which an image is one of one frame."""
        return self.frame_rate is not None

    def require_frames(self, key: str, frames: int) -> None:
        """Raise TaskError unless the family has clips of so many frames; `key` is where the task gives the number."""
        step = self.frame_step
        if not self.has_frames and frames != 1:
            raise TaskError(f"{key} is {frames}: a {self.pipeline} makes images; remove this key")
        if (frames - 1) % step:
            below = (frames - 1) // step * step + 1
            raise TaskError(
                f"{key} is {frames}: a {self.pipeline} takes {step}k + 1 frames, such as {below} or {below + step}"
            )

    def lora_name(self, component: str, module: str) -> str:
        """Return the name of a component's module in Diffusers' LoRA files."""
        is_text = component in self.text_encoders
        if is_text and self.text_root and module.partition(".")[0] != self.text_root:
            module = f"{self.text_root}.{module}"
        return f"{component}.{module}"

    def is_denoisers(self, name: str) -> bool:
        """Return whether a name in a LoRA file (see `lora_name`) belongs to the denoiser."""
        return name.startswith(f"{self.denoiser}.")

    def targets_of(self, component: str, wanted: tuple[str, ...] | str | None) -> tuple[str, ...] | str:
        """Return the layers of a component that get an adapter; `wanted` is the task's `lora.target_modules`."""
        if component in self.text_encoders:
            return self.text_lora_targets
        return self.lora_targets if wanted is None else wanted

    def trained_components(self, *, with_text_encoders: bool) -> tuple[str, ...]:
        """Return the names of the components that a task trains.

        Raises:
            TaskError: the task trains text encoders, and this family has none that can be trained.
        """
        if with_text_encoders and not self.text_encoders:
            raise TaskError(
                "train_args.train_text_encoder: this kind of base model has no text encoder that can be trained; "
                "remove this key"
            )
        return (self.denoiser, *(self.text_encoders if with_text_encoders else ()))
