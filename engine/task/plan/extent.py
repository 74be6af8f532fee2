"""The size of what a visit shows: width, height, and for clips the number of frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Extent(NamedTuple):
    """The size of a sample, or of a view of it."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    frames: int = 1
    """1 for an image."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def __str__(self) -> str:
        frames = f" x {self.frames} frames" if self.frames != 1 else ""
        return f"{self.width} x {self.height}{frames}"


def frame_counts(num_frames: int, step: int) -> tuple[int, ...]:
    """Return the numbers of frames of the buckets of clips, ascending: `num_frames`, and shorter ones for short clips.

    A number of frames is step x k + 1. From one to the next shorter one, k is halved: 1, 5, 9, 21, 41, 81 for 81 frames
    and step 4. So at most half of a short clip is not shown, and there are few buckets.
    """
    found, k = [num_frames], (num_frames - 1) // step
    while k:
        k //= 2
        found.append(step * k + 1)
    return tuple(reversed(found))


def most_frames(available: int, counts: Sequence[int]) -> int:
    """Return the largest of `counts`, which are ascending, that a clip has, at least the first one."""
    return counts[max(1, bisect_right(counts, available)) - 1]


def latent_frames(frames: int, step: int) -> int:
    """Return the number of frames of a clip's latents: one for the first frame, and one for each `step` after it."""
    return (frames - 1) // step + 1
