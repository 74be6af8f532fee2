"""Trainings of a table: each in one go made once, and what of a result must not depend on how a training was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.forks import Forked, WitnessedRuns
from tests.support.harness import Finished, assert_same

OFTEN = {"SAVE_SECONDS": "0"}
_OF_THE_CUT = ("manifest.json", "state.json", "FINISH", "heldout.jsonl")
"""Files that name a task or its length, and the losses that are measured at each task's ends, too."""


class WholeTrainings:
    """Trainings in one go, each made when a test asks for it first."""

    def __init__(self, server: WitnessedRuns, task_of: Callable[..., Mapping[str, Any]], folder: Path) -> None:
        """`task_of` returns the task of a kind, `folder` is for the results."""
        self._server = server
        self._task_of = task_of
        self._folder = folder
        self._made: dict[tuple[str, ...], Forked] = {}

    def run(self, task: Mapping[str, Any], out: Path, *flags: str | Path, **orders: Any) -> Forked:
        """Run a task that must end well, and that saves its progress often."""
        finished = self._server.run(task, out, *flags, env=OFTEN, **orders)
        assert finished.code == 0, finished.stderr
        return finished

    def __call__(self, *kind: str) -> Forked:
        """Return the training of this kind, with the changes of its output folder."""
        if kind not in self._made:
            out = self._folder / str(len(self._made)) / "out"
            out.parent.mkdir()
            self._made[kind] = self.run(self._task_of(*kind), out, watched=str(out), save_always=True)
        return self._made[kind]

    def assert_killed_anywhere(self, root: Path, *kind: str) -> None:
        """Kill the training at some changes of its output folder: the same command ends with the same bytes."""
        whole, task = self(*kind), self._task_of(*kind)
        for at in range(3, len(whole.changes), max(1, len(whole.changes) // 4)):
            out = root / f"{at}"
            struck = self._server.run(task, out, env=OFTEN, save_always=True, watched=str(out), at=at, strike="kill")
            assert struck.code == -9, (whole.changes[at - 1], struck.stderr)
            assert_same(self.run(task, out).folders(), whole.folders())


def result_of(finished: Finished) -> dict[str, bytes]:
    """Return the files that must not depend on how a training was cut: state, weights, losses, images and clips."""
    return {name: data for name, data in finished.folders().items() if not name.endswith(_OF_THE_CUT)}
