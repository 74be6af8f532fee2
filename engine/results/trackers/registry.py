"""The registry of trackers."""

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
"""Functions that open a tracker, by its name. Every job opens all of them."""


@contextmanager
def tracked(training: TrackedTraining, *, is_first: bool) -> Iterator[Trackers]:
    """Open all trackers while the block trains. A process that is not the job's first one opens none."""
    trackers = Trackers()
    for name, opener in TRACKERS.items() if is_first else ():
        trackers.open(name, opener, training)
    try:
        yield trackers
    finally:
        trackers.close()
