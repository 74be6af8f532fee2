"""The training methods for `training_type`, and reading of checkpoints, which depend on the method. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.core.errors import CheckpointError
from engine.results import checkpoint
from engine.results.checkpoint import Checkpoint, reading
from engine.task.task import Task, TrainingType
from engine.training.methods import warm_start
from engine.training.methods.full.spec import FULL
from engine.training.methods.lokr.spec import LOKR
from engine.training.methods.lora.spec import LORA
from engine.training.methods.method import MethodSpec
from engine.training.methods.warm_start import WarmStart

if TYPE_CHECKING:
    import torch

    from engine.models.family import Family
    from engine.training.methods.method import Tensors, Trainable

METHODS: Final[Mapping[TrainingType, MethodSpec]] = {"lora": LORA, "lokr": LOKR, "full": FULL}

_DEFAULT: Final[TrainingType] = "lora"
"""The method of a checkpoint without the key `training_type`: keys at their defaults are absent."""


def attach(
    family: Family, task: Task, device: torch.device, *, start: Tensors | None, warm_start: WarmStart | None
) -> Trainable:
    """Prepare a base model in memory for the task's method; see `Trainable`."""
    module = importlib.import_module(METHODS[task.training_type].module)
    trainable: Trainable = module.attach(family, task, device, start=start, warm_start=warm_start)
    return trainable


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, incomplete, corrupt or malformed, or lacks files of the method that made it.
    """
    found = reading.load(folder)
    name = found.world.get("training_type", _DEFAULT)
    method = next((row for key, row in METHODS.items() if key == name), None)  # an untrusted name may be of any type
    if method is None:
        raise CheckpointError(f"{folder} was made by a training_type that this version does not support")
    if not method.is_complete(found.manifest["files"].keys()):
        raise CheckpointError(f"{folder / checkpoint.MANIFEST} is not a checkpoint's manifest; use another checkpoint")
    for name in found.steps:
        if not method.is_step_ending(checkpoint.step_ending(name)):
            raise CheckpointError(f"{folder / checkpoint.MANIFEST} lists {name!r}, which is not a file of a checkpoint")
    return found


def method_in(folder: Path) -> MethodSpec:
    """Return the method whose published weights a folder has, with or without a manifest.

    Raises:
        CheckpointError: the folder has none, or they are malformed.
    """
    found = next((row for row in METHODS.values() if row.is_in(folder)), None)
    if found is None:
        raise CheckpointError(f"{folder} has no trained weights; give an output folder, or its checkpoint/")
    return found


def training_type(checkpoint: Checkpoint) -> TrainingType:
    """Return the name of the method that made a checkpoint of `load_checkpoint`."""
    name: TrainingType = checkpoint.world.get("training_type", _DEFAULT)
    return name


def load_parent(folder: Path, method: MethodSpec) -> Checkpoint | WarmStart:
    """Read and verify the checkpoint that a task continues, or the weights from which it starts.

    Raises:
        CheckpointError: the folder holds neither a checkpoint nor weights that the method can start from.
    """
    if checkpoint.MANIFEST in reading.names_in(folder):
        return load_checkpoint(folder)
    return warm_start.read(folder, method.find_start, main_file=method.main_file)
