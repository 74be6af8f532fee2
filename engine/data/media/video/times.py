"""The times of a clip's frames, and which of them a clip of another frame rate shows. Exact arithmetic, no pixels.

Resampling rule: frame k of the resampled clip is at t0 + k / frame_rate, where t0 is the time of the file's first
frame, and shows the file's frame whose time is nearest, of two equally near the earlier. There are duration x rate
frames, rounded to the nearest number, halves up, at least one. The duration counts the last frame as an average one:
(t_last - t0) n / (n - 1) for n frames. So two seconds of 30 frames a second become 48 frames of 24, also where the
container rounds times to milliseconds.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from engine.data.media.geometry import UnreadableImage

MAX_FRAMES: Final = 2**16
"""Limit on the frames of a clip, in the file and resampled: 36 minutes of 30 a second."""


def exact_rate(frame_rate: float) -> Fraction:
    """Return a frame rate as the decimal number that a task writes: 29.97 is 2997/100."""
    return Fraction(str(frame_rate))


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The times of a file's frames: `ticks` in ascending order, in units of `tick` seconds. At least one."""

    ticks: tuple[int, ...]
    tick: Fraction

    @property
    def average_rate(self) -> Fraction | None:
        """Frames a second, over the times from the first to the last; None where these are equal."""
        span = (self.ticks[-1] - self.ticks[0]) * self.tick
        return (len(self.ticks) - 1) / span if span else None

    @property
    def has_variable_rate(self) -> bool:
        """True if intervals differ by more than a tenth of their average, and by more than rounded times explain."""
        intervals = [after - before for before, after in zip(self.ticks, self.ticks[1:], strict=False)]
        if not intervals:
            return False
        return max(intervals) - min(intervals) > max(Fraction(2), Fraction(sum(intervals), 10 * len(intervals)))

    def num_frames(self, frame_rate: float | None) -> int:
        """Return the number of frames at `frame_rate`; None keeps the file's. Raises UnreadableImage if too many."""
        if frame_rate is None:
            return len(self.ticks)
        average = self.average_rate
        duration = len(self.ticks) / average if average else Fraction(0)
        count = max(1, int(duration * exact_rate(frame_rate) + Fraction(1, 2)))
        if count > MAX_FRAMES:
            raise UnreadableImage(
                f"at {frame_rate:g} frames a second it has {count:,}, more than {MAX_FRAMES:,} frames"
            )
        return count

    def file_frames(self, positions: Sequence[int], frame_rate: float | None) -> list[int]:
        """Return which frames of the file, counted from 0, are at these positions of the clip at `frame_rate`."""
        if frame_rate is None:
            return list(positions)
        step = 1 / (exact_rate(frame_rate) * self.tick)
        return [self._nearest(self.ticks[0] + position * step) for position in positions]

    def _nearest(self, time: Fraction) -> int:
        """Return the frame whose time, in ticks, is nearest; of two the earlier."""
        after = min(bisect.bisect_left(self.ticks, time), len(self.ticks) - 1)
        # Of frames with the same time, the first.
        before = bisect.bisect_left(self.ticks, self.ticks[max(after - 1, 0)])
        return before if 2 * time <= self.ticks[before] + self.ticks[after] else after
