"""The task: JSON bytes in, one frozen value out.

What a task may hold is written down once, in schema/task.schema.json; the defaults live here, in the dataclasses, and a
test proves that the schema names the same. Nothing downstream sees JSON or changes a task.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints

from engine.core import json_reader
from engine.core.errors import TaskError
from engine.core.messages import plural
from engine.task.schema import SCHEMA_KEY, Schema

SCHEMA: Final = Path(__file__).parents[2] / "schema" / "task.schema.json"

PredictionType = Literal["epsilon", "v_prediction"]
LrScheduleName = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
LossType = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
MixedPrecision = Literal["no", "fp16", "bf16"]
TrainingType = Literal["lora"]
OptimizerName = Literal["adamw"]
Version = Literal["1.0.0", "2.0.0", "2.1.0", "2.5.0", "2.5.2", "3.0.0"]


CHUNK_TOKENS: Final = 75
"""What a text encoder takes of a caption at a time, start and end not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    variant: Literal["fp16", "bf16"] | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    name: str | None = None
    url: str | None = None
    config_name: str | None = None
    image_column: str = "image"
    caption_column: str = "text"
    default_caption: str | None = None
    trigger_word: str | None = None
    caption_dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tokens: int = 0
    repeats: int = 1
    mask_column: str | None = None
    alpha_mask: bool = False
    max_caption_tokens: Literal[75, 150, 225] | None = None
    caption_lines: Literal["captions", "joined"] = "captions"

    @property
    def caption_chunks(self) -> int:
        """Into how many rows of `CHUNK_TOKENS` each caption is put."""
        return (self.max_caption_tokens or CHUNK_TOKENS) // CHUNK_TOKENS

    @property
    def joins_lines(self) -> bool:
        """Whether the lines of a text file beside an image are one caption."""
        return self.caption_lines == "joined"

    @property
    def fallback_caption(self) -> str | None:
        """The caption of an image that has none; None where that is a mistake."""
        if self.default_caption is None and self.trigger_word:
            return ""  # the trigger word is put in front of it
        return self.default_caption


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutDataset:
    name: str | None = None
    url: str | None = None
    split: str | None = None
    fraction: float | None = None
    config_name: str | None = None
    max_images: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    prompt: str | None = None
    prompts: tuple[str, ...] | None = None
    num_images: int = 4
    negative_prompt: str | None = None
    guidance_scale: float = 7.5
    num_inference_steps: int = 30
    seed: int | None = None
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    dataset: HeldOutDataset | None = None

    @property
    def given_prompts(self) -> list[str] | None:
        """The prompt of each image, going round the given ones; None where they are drawn from the dataset."""
        given = self.prompts or (() if self.prompt is None else (self.prompt,))
        count = max(self.num_images, len(given))
        return [given[i % len(given)] for i in range(count)] if given else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LrScheduler:
    lr_scheduler: LrScheduleName = "constant"
    lr_warmup_steps: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamArgs:
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    epsilon: float = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepBias:
    strategy: Literal["none", "earlier", "later", "range"] = "none"
    multiplier: float = 1.0
    begin: int = 0
    end: int = 1000
    portion: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArgs:
    learning_rate: float = 1e-4
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    prediction_type: PredictionType | None = None
    max_grad_norm: float = 1.0
    num_train_epochs: int = 1
    num_train_steps: int | None = None
    max_train_epochs: int = 1
    max_train_steps: int | None = None
    scale_lr: bool = True
    resolution: int = 512
    noise_offset: float = 0.0
    snr_gamma: float | None = None
    train_text_encoder: bool = False
    text_encoder_learning_rate: float | None = None
    min_timestep: int = 0
    max_timestep: int | None = None
    timestep_bias: TimestepBias = field(default_factory=TimestepBias)
    zero_terminal_snr: bool = False
    loss_type: LossType = "l2"
    huber_schedule: HuberSchedule = "snr"
    huber_c: float = 0.1
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    optimizer: OptimizerName = "adamw"
    lr_scheduler: LrScheduler = field(default_factory=LrScheduler)
    adam_args: AdamArgs = field(default_factory=AdamArgs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    rank: int = 8
    init_lora_weights: bool | Literal["gaussian", "loftq"] = True
    target_modules: tuple[str, ...] | str | None = None
    alpha: float | None = None
    dropout: float = 0.0
    use_rslora: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    center_crop: bool = False
    random_flip: bool = False
    buckets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    model: Model
    dataset: Dataset
    validation: Validation = field(default_factory=Validation)
    training_type: TrainingType = "lora"
    train_args: TrainArgs = field(default_factory=TrainArgs)
    lora: Lora = field(default_factory=Lora)
    transforms: Transforms = field(default_factory=Transforms)
    dataloader_num_workers: int = 0
    mixed_precision: MixedPrecision = "no"
    seed: int = 0
    checkpoint: str | None = None
    checkpoint_every_n_steps: int | None = None
    checkpoint_limit: int = 5
    version: Version = "2.5.0"


# clients that fill in a template leave these empty
_EMPTY_IS_ABSENT: Final = (
    "model.revision",
    "dataset.name",
    "dataset.url",
    "dataset.config_name",
    "dataset.trigger_word",
    "dataset.mask_column",
    "validation.dataset.name",
    "validation.dataset.url",
    "validation.dataset.split",
    "validation.dataset.config_name",
    "checkpoint",
)
# where a task runs, in how much memory, and what it continues do not make it another task
_NOT_IDENTITY: Final = ("checkpoint", "dataloader_num_workers", "version", "train_args.gradient_checkpointing")

_T = TypeVar("_T")


def parse_task(data: bytes, *, source: str) -> Task:
    """Read a task.

    Args:
        data: JSON in UTF-8.
        source: what messages call the task: a path, `TASK_JSON`.

    Raises:
        TaskError: everything that is wrong with it, each with its JSON path (or its line and column, where the text is
            no JSON), the value and what was expected.
    """
    value, problems = json_reader.parse(data)
    readable = value is not None or not problems
    if readable:
        problems += task_schema().problems(value)
    if problems:
        count = plural(len(problems), "problem")
        if len(problems) > json_reader.MAX_PROBLEMS:
            count = f"more than {json_reader.MAX_PROBLEMS} problems"
        listed = "; ".join(str(problem) for problem in problems[: json_reader.MAX_PROBLEMS])
        raise TaskError(f"{source}: {count}: {listed}{'; …' if len(problems) > json_reader.MAX_PROBLEMS else ''}")
    return _build(Task, {key: item for key, item in value.items() if key != SCHEMA_KEY})


@functools.cache
def task_schema() -> Schema:
    """The task's schema, compiled on first use."""
    return Schema(SCHEMA)


def _build(cls: type[_T], value: dict[str, Any], path: str = "") -> _T:
    """The dataclass of an object that the schema has accepted."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, item in value.items():
        dotted = f"{path}{key}"
        if isinstance(item, dict):
            arguments[key] = _build(_object_type(hints[key]), item, f"{dotted}.")
        elif isinstance(item, list):
            arguments[key] = tuple(item)
        elif item is not None and float in (hints[key], *get_args(hints[key])):
            arguments[key] = float(item) + 0.0  # 1 and 1.0, 0.0 and -0.0 are the same task: one canonical form
        elif item or dotted not in _EMPTY_IS_ABSENT:
            arguments[key] = item
    return cls(**arguments)


def _object_type(hint: Any) -> Any:
    """The dataclass of a key that may also be null."""
    return next((part for part in get_args(hint) if is_dataclass(part)), hint)


def canonical(task: Task) -> dict[str, Any]:
    """What makes this task this task, as JSON: the keys that differ from their default.

    Without what changes no bit of the result: `checkpoint`, `dataloader_num_workers`, `version` and
    `train_args.gradient_checkpointing`. A key that is added to the format later changes no old task's canonical form.
    """
    return differences(task, without=_NOT_IDENTITY)


def differences(value: Any, *, without: Collection[str] = (), path: str = "") -> dict[str, Any]:
    """A dataclass's fields that differ from their default, as JSON, but for the dotted keys in `without`."""
    result: dict[str, Any] = {}
    for part in fields(value):
        item, dotted = getattr(value, part.name), f"{path}{part.name}"
        if dotted in without:
            continue
        if is_dataclass(item):
            if inner := differences(item, without=without, path=f"{dotted}."):
                result[part.name] = inner
        elif item != part.default:
            result[part.name] = list(item) if isinstance(item, tuple) else item
    return result


def canonical_json(value: object) -> bytes:
    """The one way to write a JSON value that digests are taken of: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()
