"""Results of steps before a task's last one (images and LoRAs): when they are due, and how they survive a kill.

Each is written to disk before the progress is saved at its step or a later one, and the saved progress names each with
its SHA-256. So an interrupted job continues with exactly the results of the steps that it has trained; other files
there belong to steps that it trains again. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from engine.core.files.atomic_files import Stored
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
    """Return the steps whose LoRA a task keeps, without its last step.

    The step at which the task begins is included, since it is the result of the task before. So a chain keeps the same
    LoRAs as one long task.
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


class StepResults:
    """The results of earlier steps that a task has made so far. All processes know them; the first has the files."""

    def __init__(self, output: OutputFolder, hashes: Mapping[str, str] | None = None) -> None:
        self._output = output
        self.hashes = dict(hashes or {})
        """The SHA-256 of each result by name, for the saved progress."""

    def write(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Write files, sync them to disk, and return their SHA-256 by name. Results are only those in `hashes`."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            self._output.add_step_file(hashes[name], data)
        return hashes

    def limit_weights(self, limit: int) -> None:
        """Keep only the LoRAs of the latest `limit` steps. The others' files stay until `delete_unnamed`."""
        names = [name.removeprefix(WEIGHTS) for name in self.hashes if name.startswith(WEIGHTS)]
        for name in set(names) - latest(names, limit):
            del self.hashes[WEIGHTS + name]

    def delete_unnamed(self) -> None:
        """Delete files that are not results any more. Call it only after saving a progress that names none of them."""
        self._output.delete_step_files_except(set(self.hashes.values()))

    def files(self, folder: str) -> dict[str, Stored]:
        """Return the results of the folder `IMAGES` or `WEIGHTS`, by the names under which they are published."""
        return {
            name.removeprefix(folder): self._output.step_file(digest)
            for name, digest in self.hashes.items()
            if name.startswith(folder)
        }


def latest(names: Iterable[str], limit: int) -> set[str]:
    """Return those names of step files that belong to the latest `limit` steps."""
    found = {name: step for name in names if (step := checkpoint.step_of(name)) is not None}
    steps = sorted(set(found.values()))[-limit:]
    return {name for name, step in found.items() if step in steps}
