"""Which trackers there are, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from engine.results.trackers.console import ConsoleTracker
from engine.results.trackers.jsonl import follow_training
from engine.results.trackers.tracker import TrackedTraining, Tracker, Trackers

TRACKERS: Final[dict[str, Callable[[TrackedTraining], Tracker]]] = {
    "jsonl": follow_training,
    "console": ConsoleTracker,
}
"""What opens each tracker. All of them are on in every job."""


@contextmanager
def tracked(training: TrackedTraining, *, is_first: bool) -> Iterator[Trackers]:
    """Open all trackers for the block that trains; none in a process that is not the job's first."""
    trackers = Trackers()
    for name, opener in TRACKERS.items() if is_first else ():
        trackers.open(name, opener, training)
    try:
        yield trackers
    finally:
        trackers.close()
