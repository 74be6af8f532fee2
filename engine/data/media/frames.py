"""The frames of a clip that a visit shows. Arithmetic on positions, without pixels."""

from __future__ import annotations

from engine.core.messages import plural
from engine.data.media.geometry import Frames, UnfitImage
from engine.task.task import FrameExtraction


def choose_frames(available: int, count: int, extraction: FrameExtraction, *, turn: int = 0, word: int = 0) -> Frames:
    """Return `count` frames of a clip that has `available` ones.

    Args:
        available: the frames of the clip.
        count: the frames to show.
        extraction: `head` takes the first ones; `chunk` cuts the clip into pieces of `count` frames, from its start,
            and takes them in turn, a remainder at the end never; `uniform` spreads the frames evenly from the first to
            the last one; `random` takes successive ones from a random start.
        turn: the number of the pass over the dataset, for `chunk`.
        word: a raw 64-bit random word, for `random`.

    Raises:
        UnfitImage: the clip has fewer frames.
    """
    if available < count:
        raise UnfitImage(f"it has {plural(available, 'frame')}, fewer than the {count} of train_args.num_frames")
    if extraction == "uniform":
        return Frames(tuple(_spread(available, count)))
    start, slack = 0, available - count
    if extraction == "chunk":
        start = turn % (available // count) * count
    elif extraction == "random":
        start = ((word >> 32) * (slack + 1)) >> 32
    return Frames(tuple(range(start, start + count)), repeatable=extraction != "random" or not slack)


def _spread(available: int, count: int) -> list[int]:
    """Return `count` positions from 0 to `available - 1`, rounded to the nearest, halves down; the middle one for 1."""
    if count == 1:
        return [(available - 1) // 2]
    return [(2 * i * (available - 1) + count - 2) // (2 * (count - 1)) for i in range(count)]
