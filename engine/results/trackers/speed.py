"""Measure the speed of a training."""

from __future__ import annotations

import time


class Speed:
    """A counter of a training's steps and of the seconds since its start."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps = 0

    def begin(self) -> None:
        """Start the time. Later calls have no effect."""
        if self._since is None:
            self._since = time.monotonic()

    def step(self) -> float:
        """Count one step, and return the steps per second so far."""
        self.begin()
        assert self._since is not None
        self._steps += 1
        return self._steps / max(time.monotonic() - self._since, 1e-9)
