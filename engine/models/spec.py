"""What is known of a model family without importing torch: the row of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.core.errors import TaskError
from engine.models.parts.tape import Tape
from engine.models.single_file import SingleFile
from engine.task.task import PredictionType

Configs = Callable[[str], Mapping[str, Any]]
"""A component's name -> its config.json. A key that it leaves out has the default of Diffusers' or transformers'."""


class TokenCounter(Protocol):
    """Counts the tokens of captions as the base model's tokenizer makes them."""

    limit: int
    """Tokens that a caption may have, start and end not counted, as `dataset.max_caption_tokens` counts them."""

    def count(self, caption: str) -> int:
        """Return the number of tokens of a caption, start and end not counted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a task does with a base model, as far as memory depends on it."""

    batch: int
    resolution: int
    """Height and width of the images in pixels."""
    caption_chunks: int
    value_bytes: int
    """Bytes of a value in the task's precision."""
    trains_text_encoders: bool
    denoiser: Tape
    """Records the denoiser's training step."""
    text_encoders: Tape
    """Records that of all text encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoder:
    """The footprint of what turns images into latents, and back."""

    parameters: int
    weight_bytes: int
    encode_bytes: int
    """The peak while one image is encoded, besides the weights."""
    decode_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """A family's row."""

    pipeline: str
    """Diffusers' pipeline class: `_class_name` in `model_index.json`."""
    module: str
    """The module with the torch part, `load(args: LoadArgs) -> Family`."""
    components: tuple[str, ...]
    """The sub-folders of the base model that training and validation need."""
    weighted: tuple[str, ...]
    """Those of them that hold weights."""
    denoiser: str
    """The denoiser's component, in Diffusers' folders and in LoRA files."""
    text_encoders: tuple[str, ...]
    """The components that `train_args.train_text_encoder` trains."""
    lora_targets: tuple[str, ...]
    """What `lora.target_modules: null` means in the denoiser."""
    text_lora_targets: tuple[str, ...]
    """The adapted layers of a text encoder that is trained."""
    text_root: str | None
    """The level that LoRA files have around a text encoder's layers, whether its class has it or not; None for none."""
    objective: str
    """A key of `objectives.registry.OBJECTIVES`."""
    medium: str
    """What is trained on: "image"."""
    check: Callable[[Configs], None]
    """Raises ModelError for configurations that do not make this family."""
    webui_metadata: Callable[[Configs, PredictionType], dict[str, str]]
    """Returns what LoRA files in the web interfaces' format say of the base model."""
    token_counter: Callable[[Path, SingleFile | None, int], TokenCounter | None]
    """Returns the counter for a model's folder or single file and captions of so many chunks; None where the tokenizer
    is not on disk. Raises ModelError for a malformed tokenizer."""
    footprint: Callable[[Configs, Workload], ImageEncoder]
    """Records a training step on the tapes of the workload. Raises KeyError, TypeError, ValueError, IndexError or
    AttributeError for configurations that do not say how large the model is."""

    def lora_name(self, component: str, module: str) -> str:
        """Return what Diffusers' LoRA files call a module of a component."""
        is_text = component in self.text_encoders
        if is_text and self.text_root and module.partition(".")[0] != self.text_root:
            module = f"{self.text_root}.{module}"
        return f"{component}.{module}"

    def is_denoisers(self, name: str) -> bool:
        """Whether a name in a LoRA file, or one of `lora_name`, is about the denoiser."""
        return name.startswith(f"{self.denoiser}.")

    def targets_of(self, component: str, wanted: tuple[str, ...] | str | None) -> tuple[str, ...] | str:
        """Return what is adapted in a component, where `wanted` is the task's `lora.target_modules`."""
        if component in self.text_encoders:
            return self.text_lora_targets
        return self.lora_targets if wanted is None else wanted

    def trained_components(self, *, with_text_encoders: bool) -> tuple[str, ...]:
        """Return the names of the components that a task trains.

        Raises:
            TaskError: text encoders are to be trained, and this family has none that can be.
        """
        if with_text_encoders and not self.text_encoders:
            raise TaskError(
                "train_args.train_text_encoder: this kind of base model has no text encoder that can be trained; "
                "leave it out"
            )
        return (self.denoiser, *(self.text_encoders if with_text_encoders else ()))
