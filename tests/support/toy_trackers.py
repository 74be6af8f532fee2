"""Trackers for tests: one that remembers what it is told, one that always fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engine.results.history import StepReport
from engine.results.trackers.tracker import TrackedTraining


class Recorder:
    """Remembers everything that it is told, in order."""

    def __init__(self, training: TrackedTraining) -> None:
        self.told: list[Any] = [("open", training.step, training.step_range.stop_step)]

    def step(self, report: StepReport) -> None:
        self.told.append(report)

    def event(self, name: str, **values: Any) -> None:
        self.told.append((name, values))

    def close(self) -> None:
        self.told.append("close")


class Failing:
    """Raises whenever it is told anything."""

    def __init__(self, training: TrackedTraining) -> None:
        self.num_told = 0

    def step(self, report: StepReport) -> None:
        self.num_told += 1
        raise ConnectionError("no route to the tracking server")

    def event(self, name: str, **values: Any) -> None:
        self.num_told += 1
        raise ValueError(name)

    def close(self) -> None:
        self.num_told += 1
        raise KeyError("close")


def main() -> int:
    """Run the program with both trackers on: a prefix of its command for `harness.run_job`.

    Its first argument is a file, to which the recorder's lines are appended.
    """
    from engine.results.trackers.registry import TRACKERS
    from entrypoint import main as run

    record, _, _, *argv = sys.argv[1:]

    class Written(Recorder):
        def close(self) -> None:
            super().close()
            Path(record).write_text(json.dumps([repr(told) for told in self.told]))

    TRACKERS["failing"] = Failing
    TRACKERS["recorder"] = Written
    return run(argv, os.environ)


if __name__ == "__main__":
    sys.exit(main())
