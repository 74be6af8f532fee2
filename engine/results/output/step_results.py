"""Results of steps before a task's last one (images and weights): when they are due, and how they survive a kill.

Each is written to disk before the progress is saved at its step or a later one, and the saved progress names each with
its SHA-256. So an interrupted job continues with exactly the results of the steps that it has trained; other files
there belong to steps that it trains again. The files of the training state are written in the same way. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.core.files.atomic_files import Contents, Pieces, Stored
from engine.results import checkpoint
from engine.results.output.folder import OutputFolder
from engine.task.plan.steps import StepRange, validation_interval
from engine.task.task import Task

IMAGES: Final = "validation/"
WEIGHTS: Final = "checkpoint/"
"""First parts of results' names: the folder in which they are published."""


def image_steps(task: Task, step_range: StepRange) -> range:
    """Return the steps of a task after which validation images are drawn, without its last step."""
    interval = validation_interval(task.validation, step_range)
    return _multiples(interval, step_range.start_step + 1, step_range.stop_step)


def checkpoint_steps(task: Task, step_range: StepRange) -> range:
    """Return the steps whose weights a task keeps, without its last step.

    The step at which the task begins is included, since it is the result of the task before. So a chain keeps the same
    weights as one long task.
    """
    return _multiples(task.checkpoint_every_n_steps, max(step_range.start_step, 1), step_range.stop_step)


def _multiples(interval: int | None, start: int, stop: int) -> range:
    return range(-(-start // interval) * interval, stop, interval) if interval else range(0)


def has_weights(names: Iterable[str], step: int) -> bool:
    """Return whether the names of results have a step's weights."""
    return any(checkpoint.step_of(name.removeprefix(WEIGHTS)) == step for name in names if name.startswith(WEIGHTS))


def image_name(step: int, file: str) -> str:
    """Return the name of a step's image among the results of earlier steps."""
    return f"{IMAGES}step-{step:06}/{file}"


def is_of_step(name: str, step: int) -> bool:
    """Return whether a result of an earlier step belongs to this step."""
    return has_weights([name], step) or name.startswith(image_name(step, ""))


@dataclass(frozen=True, slots=True)
class SavedState:
    """A training state on disk."""

    scalars: Mapping[str, Any]
    """A JSON value with the counters, which are not in its files."""
    files: Mapping[str, str]
    """The SHA-256 of each file by the name under which it is published. Known in the first process only."""

    def is_of(self, step: int) -> bool:
        """Return whether it is the state after this step."""
        return bool(self.scalars["global_step"] == step)


class StepResults:
    """The results of earlier steps that a task has made so far. All processes know them; the first has the files."""

    def __init__(
        self, output: OutputFolder, hashes: Mapping[str, str] | None = None, state: SavedState | None = None
    ) -> None:
        self._output = output
        self.state = state
        """The state that is saved; None if there is none."""
        self.hashes = dict(hashes or {})
        """The SHA-256 of each result by name, for the saved progress."""

    def write(self, files: Mapping[str, bytes | Pieces]) -> dict[str, str]:
        """Write files, sync them to disk, and return their SHA-256 by name. Results are only those in `hashes`."""
        return {
            name: self._output.store([content] if isinstance(content, bytes) else content()).sha256
            for name, content in files.items()
        }

    def stored(self, files: Mapping[str, bytes | Pieces]) -> dict[str, Contents]:
        """Write the files that come in pieces, and return all by name. Small ones stay in memory."""
        written = self.write({name: content for name, content in files.items() if not isinstance(content, bytes)})
        return {
            name: content if isinstance(content, bytes) else self._output.stored(written[name])
            for name, content in files.items()
        }

    def state_files(self) -> dict[str, Stored]:
        """Return the files of the saved state, by the names under which they are published."""
        files = self.state.files if self.state else {}
        return {name: self._output.stored(digest) for name, digest in files.items()}

    def limit_weights(self, limit: int) -> None:
        """Keep only the weights of the latest `limit` steps. The others' files stay until `delete_unnamed`."""
        names = [name.removeprefix(WEIGHTS) for name in self.hashes if name.startswith(WEIGHTS)]
        for name in set(names) - latest(names, limit):
            del self.hashes[WEIGHTS + name]

    def delete_unnamed(self) -> None:
        """Delete files that are neither results nor of the saved state.

        Call it only where the saved progress names none of them, or is not used any more.
        """
        state = self.state_files().values()
        self._output.delete_stored_except({*self.hashes.values(), *(file.sha256 for file in state)})

    def files(self, folder: str) -> dict[str, Stored]:
        """Return the results of the folder `IMAGES` or `WEIGHTS`, by the names under which they are published."""
        return {
            name.removeprefix(folder): self._output.stored(digest)
            for name, digest in self.hashes.items()
            if name.startswith(folder)
        }


def latest(names: Iterable[str], limit: int) -> set[str]:
    """Return those names of step files that belong to the latest `limit` steps."""
    found = {name: step for name in names if (step := checkpoint.step_of(name)) is not None}
    steps = sorted(set(found.values()))[-limit:]
    return {name for name, step in found.items() if step in steps}
