"""Read what a checkpoint publishes, whichever method made it, to export it with its base model."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from engine.core.errors import TaskError
from engine.core.files.built_beside import Streamed
from engine.models.export.weights import Weights
from engine.models.spec import FamilySpec
from engine.results.checkpoint import Checkpoint
from engine.training.methods.registry import METHODS, training_type


class Published(Protocol):
    """The weights that a checkpoint publishes.

    The module `MethodSpec.published` has a function `load(folder: Path, checkpoint: Checkpoint) -> Published`, which
    raises CheckpointError if the files are malformed.
    """

    def components(self, spec: FamilySpec) -> Collection[str]:
        """Return the names of the components that were trained.

        Raises:
            CheckpointError: the family does not have them.
        """
        ...

    def weights(self, component: str, base: Weights, spec: FamilySpec, strength: float) -> Weights:
        """Return a trained component's weights, which are computed when they are read.

        Args:
            component: one of `components`.
            base: the base model's weights of this component.
            spec: the base model's family.
            strength: how strongly the training is applied; 1 is as trained.

        Raises:
            CheckpointError: the weights do not fit the base model.
            TaskError: the method has only strength 1.
        """
        ...

    def alone(self, layout: str, strength: float, dtype_name: str) -> Streamed | Mapping[str, bytes | Streamed]:
        """Return the trained weights without the base model: one file, or the files of a folder.

        Args:
            layout: the name of a file format.
            strength: how strongly the training is applied.
            dtype_name: `fp32`, `fp16` or `bf16`.

        Raises:
            TaskError: the method's weights are of use only as a whole model, or not in this format.
        """
        ...


def load(folder: Path, checkpoint: Checkpoint) -> Published:
    """Return what a verified checkpoint in a folder publishes.

    Raises:
        CheckpointError: its files are malformed.
        TaskError: what the method publishes cannot be exported.
    """
    method = METHODS[training_type(checkpoint)]
    if method.published is None:
        raise TaskError(f"{method.words.noun} cannot be exported: use the files in {folder} as they are")
    published: Published = importlib.import_module(method.published).load(folder, checkpoint)
    return published
