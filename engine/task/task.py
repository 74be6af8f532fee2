"""Parse the task: JSON bytes to a frozen value.

Each key is defined once, as a field of a dataclass in this module or in `engine/task/keys/`. `engine/task/key.py`
documents the descriptions of keys, and `docs/extending/task-key.md` how to add one. `engine.task.definition` makes the
schema from them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from engine.core import json_reader
from engine.core.errors import TaskError
from engine.core.messages import plural
from engine.task.definition import definition
from engine.task.key import Chain, Named, about, about_field, key
from engine.task.keys.dataset import Dataset, FrameExtraction
from engine.task.keys.lora import Lora
from engine.task.keys.model import Component, Model, Quantization
from engine.task.keys.optimizer import AdamArgs, LrScheduleName, LrScheduler
from engine.task.keys.patterns import NO_NUL
from engine.task.keys.train_args import HuberSchedule, PredictionType, TimestepBias, TimestepSampling, TrainArgs
from engine.task.keys.transforms import Transforms
from engine.task.keys.validation import HeldOutDataset, Prompt, Validation
from engine.task.schema import SCHEMA_KEY, Schema

__all__ = [
    "AdamArgs",
    "Component",
    "Dataset",
    "FrameExtraction",
    "HeldOutDataset",
    "HuberSchedule",
    "Lora",
    "LrScheduleName",
    "LrScheduler",
    "MixedPrecision",
    "Model",
    "PredictionType",
    "Prompt",
    "Quantization",
    "Task",
    "TimestepBias",
    "TimestepSampling",
    "TrainArgs",
    "Transforms",
    "Validation",
    "parse_task",
    "task_schema",
]

MixedPrecision = Literal["no", "fp16", "bf16"]
TrainingType = Literal["lora", "lokr", "full"]
Version = Literal["1.0.0", "2.0.0", "2.1.0", "2.5.0", "2.5.2", "3.0.0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    model: Model = field(
        metadata=about(
            "Base model",
            "The model that is fine-tuned; with a LoRA its weights stay as they are.",
            chain=Chain.BY_ITS_KEYS,
        )
    )
    dataset: Dataset = field(
        metadata=about(
            "Dataset",
            "Images with captions. It needs a name or a url; if both are given, the name is used.",
            chain=Chain.BY_ITS_KEYS,
        )
    )
    validation: Validation = key(
        Validation,
        "Validation",
        "The validation images and the loss of held-out images, which show what has been learned.",
        chain=Chain.BY_ITS_KEYS,
        required=True,
    )
    training_type: TrainingType = key(
        "lora",
        "Training type",
        "The training method: `lora` trains a LoRA, with the base model's weights frozen; `lokr` trains a LoKr of the "
        "denoiser in the same way ([LoKr](#lokr)); `full` trains all weights of the denoiser.",
        chain=Chain.AGREED_IF_SET,
    )
    train_args: TrainArgs = key(
        TrainArgs,
        "Training arguments",
        "The settings of the training, the steps of this task, and the length of the whole training.",
        chain=Chain.BY_ITS_KEYS,
        required=True,
    )
    lora: Lora = key(
        Lora, "LoRA", "The adapter that is trained with the training type `lora`.", chain=Chain.BY_ITS_KEYS
    )
    transforms: Transforms = key(
        Transforms, "Transforms", "What happens to an image before it is trained on.", chain=Chain.BY_ITS_KEYS
    )
    dataloader_num_workers: int = key(
        0,
        "Worker processes",
        "Processes that load images; 0 loads them in the main process. It never changes the result.",
        chain=Chain.NO_EFFECT,
        minimum=0,
    )
    mixed_precision: MixedPrecision = key(
        "no",
        "Mixed precision",
        "The precision of the frozen weights and of the computation; what is trained stays in fp32.",
        chain=Chain.AGREED,
    )
    seed: int = key(0, "Seed", "The seed of everything that is random.", chain=Chain.AGREED, minimum=0)
    checkpoint: str | None = key(
        None,
        "Checkpoint",
        "The `checkpoint/` folder of a previous task, to continue from.",
        chain=Chain.NO_EFFECT,
        empty_is_absent=True,
        pattern=NO_NUL,
    )
    checkpoint_every_n_steps: int | None = key(
        None,
        "Steps between weights that are kept",
        "Keep the LoRA, or the whole model, after each multiple of this number of optimizer steps of the whole "
        "training in `checkpoint/steps/`; null keeps none.",
        minimum=1,
    )
    checkpoint_limit: int = key(
        5,
        "Number of steps that are kept",
        "How many steps' weights are kept through the whole chain; the latest stay.",
        needs="checkpoint_every_n_steps",
        minimum=1,
        maximum=100,
    )
    version: Version = key(
        "2.5.0",
        "Version",
        "The version of the task format that the client speaks.",
        chain=Chain.NO_EFFECT,
    )


_T = TypeVar("_T")


def parse_task(data: bytes, *, source: str) -> Task:
    """Read a task.

    Args:
        data: JSON in UTF-8.
        source: the task's name in messages: a path, `TASK_JSON`.

    Raises:
        TaskError: lists all problems, each with its JSON path (or line and column if the text is not JSON), the value
            and what was expected.
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
    """Return the task's schema, compiled on first use."""
    return Schema(definition(Task))


def _build(cls: type[_T], value: dict[str, Any]) -> _T:
    """Return the dataclass instance of an object that the schema has accepted."""
    hints = get_type_hints(cls)
    parts = {part.name: part for part in fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict) and get_origin(hints[name]) is Mapping:
            kind = get_args(hints[name])[1]
            arguments[name] = Named({key: _build(kind, one) for key, one in sorted(item.items())})
        elif isinstance(item, dict):
            arguments[name] = _build(_object_type(hints[name]), item)
        elif isinstance(item, list):
            arguments[name] = tuple(
                _build(_item_type(hints[name]), one) if isinstance(one, dict) else one for one in item
            )
        elif isinstance(item, int | float) and float in (hints[name], *get_args(hints[name])):
            arguments[name] = float(item) + 0.0  # 1 and 1.0, 0.0 and -0.0 must give the same canonical form
        elif item or not about_field(parts[name]).empty_is_absent:
            arguments[name] = item
    return cls(**arguments)


def _item_type(hint: Any) -> Any:
    """Return the dataclass of a list's items that may also be strings."""
    items = next(part for part in (hint, *get_args(hint)) if get_origin(part) is tuple)
    return _object_type(get_args(items)[0])


def _object_type(hint: Any) -> Any:
    """Return the dataclass of a key that may also be null."""
    return next((part for part in get_args(hint) if is_dataclass(part)), hint)
