"""The whole components of a checkpoint, to be exported with the frozen parts of the base model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from engine.core.errors import CheckpointError, TaskError
from engine.models.export.weights import Weights, of_folder
from engine.models.spec import FamilySpec
from engine.results.checkpoint import Checkpoint
from engine.training.methods.full.files import CONFIG


@dataclass(frozen=True, slots=True)
class PublishedComponents:
    """The trained components of a checkpoint; see `Published`."""

    folder: Path
    names: frozenset[str]
    files: frozenset[str]
    """The names of all files that were verified."""

    def components(self, spec: FamilySpec) -> Collection[str]:
        """See `Published.components`."""
        if unknown := sorted(self.names - set(spec.weighted)):
            raise CheckpointError(f"the checkpoint has {unknown[0]}/, which the base model does not have")
        return self.names

    def weights(self, component: str, base: Weights, spec: FamilySpec, strength: float) -> Weights:
        """See `Published.weights`: the published files, which have the names and shapes of the base model's."""
        if strength != 1:
            raise TaskError("--strength is for LoRAs: this checkpoint has a whole model")
        found = of_folder(self.folder / component, None, CheckpointError)
        if foreign := sorted(name for name in found.files if f"{component}/{name}" not in self.files):
            raise CheckpointError(f"{self.folder / component / foreign[0]} is no file of the checkpoint: remove it")
        shapes, expected = ({name: one.shape for name, one in own.tensors.items()} for own in (found, base))
        if len(shapes) != len(expected) or sorted(shapes.values()) != sorted(expected.values()):
            raise CheckpointError(f"{self.folder / component} has other tensors than the base model's {component}")
        return found

    def alone(self, layout: str, strength: float, dtype_name: str) -> NoReturn:
        """See `Published.alone`."""
        raise TaskError("this checkpoint has a whole model, not a LoRA: use --format diffusers or single_file")


def load(folder: Path, checkpoint: Checkpoint) -> PublishedComponents:
    """Return the components of a verified checkpoint."""
    files = frozenset(checkpoint.manifest["files"])
    names = (name.split("/") for name in files)
    return PublishedComponents(folder, frozenset(parts[0] for parts in names if parts[1:] == [CONFIG]), files)
