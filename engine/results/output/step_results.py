"""Results of steps before a task's end, images and LoRAs: when they are due, and how they outlive a kill. No torch.

Each is written to disk before the progress is saved at its step or a later one, and the saved progress names each with
its SHA-256. So an interrupted job goes on with exactly those that belong to the steps it has trained; whatever else
lies there is of steps that it trains again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from engine.core.files.atomic_files import Stored
from engine.results import checkpoint
from engine.results.output.folder import OutputFolder
from engine.task.plan.steps import StepRange, validation_interval
from engine.task.task import Task

IMAGES: Final = "validation/"
WEIGHTS: Final = "checkpoint/"
"""Names of what is kept begin with the folder that it is published in."""


def image_steps(task: Task, step_range: StepRange) -> range:
    """The steps inside a task after which its validation images are drawn, besides its last."""
    interval = validation_interval(task.validation, step_range)
    return _multiples(interval, step_range.start_step + 1, step_range.stop_step)


def checkpoint_steps(task: Task, step_range: StepRange) -> range:
    """The steps whose LoRA a task keeps beside its last one's.

    That which it begins at is one of them: the task before has it as its result. So a chain keeps what one task would.
    """
    return _multiples(task.checkpoint_every_n_steps, max(step_range.start_step, 1), step_range.stop_step)


def _multiples(interval: int | None, start: int, stop: int) -> range:
    return range(-(-start // interval) * interval, stop, interval) if interval else range(0)


def image_name(step: int, file: str) -> str:
    """What an image of a step is called among what is kept."""
    return f"{IMAGES}step-{step:06}/{file}"


class Kept:
    """What a task has kept so far. All processes of a job know it; the first one alone has the files."""

    def __init__(self, output: OutputFolder, hashes: Mapping[str, str] | None = None) -> None:
        self._output = output
        self.hashes = dict(hashes or {})
        """Name -> SHA-256, for the saved progress."""

    def write(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Put files on disk, durably, and return their hashes. They count as kept once these are in `hashes`."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            self._output.keep(hashes[name], data)
        return hashes

    def limit_weights(self, limit: int) -> None:
        """Keep only the LoRAs of the latest `limit` steps. Their files stay until `tidy`."""
        names = [name.removeprefix(WEIGHTS) for name in self.hashes if name.startswith(WEIGHTS)]
        for name in set(names) - latest(names, limit):
            del self.hashes[WEIGHTS + name]

    def tidy(self) -> None:
        """Delete the files that are not kept any more. Only after a progress is saved that names none of them."""
        self._output.keep_only(set(self.hashes.values()))

    def files(self, folder: str) -> dict[str, Stored]:
        """What is kept of `IMAGES` or `WEIGHTS`, by the names it is published under."""
        return {
            name.removeprefix(folder): self._output.kept(digest)
            for name, digest in self.hashes.items()
            if name.startswith(folder)
        }


def latest(names: Iterable[str], limit: int) -> set[str]:
    """Those of a checkpoint's files of steps that are of the latest `limit` steps."""
    found = {name: step for name in names if (step := checkpoint.step_of(name)) is not None}
    steps = sorted(set(found.values()))[-limit:]
    return {name for name, step in found.items() if step in steps}


def load_progress(output: OutputFolder, report: Callable[[str], None]) -> bytes | None:
    """The saved progress, or None where there is none or something that it names is missing or damaged.

    `report` takes a line about the latter.
    """
    payload = output.load_progress()
    if payload is None:
        return None
    hashes = json.loads(payload.partition(b"\n")[0]).get("kept", {})
    for name, digest in hashes.items():
        if not output.kept(digest).is_whole():
            report(f"{name}, which was kept of an earlier step, is gone or damaged: this task begins again")
            return None
    return payload
