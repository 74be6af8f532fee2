"""The interface of a medium: the size of an encoded sample, the pixels of one view of it, its mask, its file names.

A medium is one module with these functions, a `Medium` that holds them, and a row in `registry.py`. The functions are
defined at module level, not as closures, because worker processes import them by name; `functools.partial` binds what
the task decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.data.media.clip_facts import ClipFacts
from engine.data.media.frames import choose_frames
from engine.data.media.geometry import NO_FRAMES, Frames, Geometry, Size
from engine.data.media.sample_names import OF_IMAGES, SampleNames
from engine.task.plan.extent import Extent
from engine.task.task import FrameExtraction

Pixels = npt.NDArray[np.uint8]
ReadFacts = Callable[[bytes], ClipFacts]
CheckInTime = Callable[[bytes, Callable[[], bool]], Extent]


class RenderMask(Protocol):
    def __call__(self, data: bytes, view: Geometry, size: Size, *, alpha: bool) -> Pixels:
        """Return the part `view` of a mask at `size` (width, height): uint8, shape (height, width).

        `data` is the mask or, with `alpha`, the sample itself, whose opacity is the weight. Raises UnreadableImage.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """The functions of a medium. All of them raise UnreadableImage for bytes that cannot be trained on."""

    suffixes: frozenset[str]
    """The suffixes of its files, in lower case with the dot. The format is detected from the content."""
    reader_version: str
    """The version of the code that reads headers, and what of the task it depends on: cached sizes of another one are
    not used."""
    has_frames: bool = False
    """True if samples are clips: views have frames (`Geometry.frames`), of which an image has one."""
    libraries: tuple[str, ...] = ()
    """Packages that decode samples, besides those that every job needs: results record their versions."""
    decoding: str = ""
    """Names what the pixels of a view depend on, besides the bytes: the frame rate and the decoder's version, as far as
    the encoding cache does not distinguish them already."""
    measure: Callable[[bytes], Extent]
    """Returns the upright size of an encoded sample, and the number of its frames, without decoding pixels."""
    check: Callable[[bytes], Extent]
    """Decodes a sample completely and returns the same."""
    render: Callable[[bytes, Geometry], Pixels]
    """Returns one view of a sample: uint8, (height, width, 3), with `has_frames` (frames, height, width, 3)."""
    check_mask: Callable[[bytes, Size], None]
    """Raises UnreadableImage if `render_mask` would refuse the mask for a sample of this size."""
    render_mask: RenderMask
    has_alpha: Callable[[bytes], bool]
    """Returns whether parts of a sample are transparent."""
    has_more_frames: Callable[[bytes], bool]
    """Returns whether a sample has frames besides the one that is shown."""
    check_in_time: CheckInTime | None = None
    """Does as `check` does, but leaves the frames that are left when the function that it is given returns True; None
    for a medium whose samples have no frames."""
    read_facts: ReadFacts | None = None
    """Returns the facts about a clip without decoding it; None for a medium whose samples have no frames."""
    names: SampleNames = OF_IMAGES
    """The names of its samples."""
    still_suffixes: frozenset[str] = frozenset()
    """The suffixes of still images among samples of another kind."""

    def has_name(self, name: str) -> bool:
        """Return whether a file's name has one of this medium's suffixes."""
        return suffix_of(name) in self.suffixes

    def choose_frames(
        self, available: int, count: int, extraction: FrameExtraction, *, turn: int = 0, word: int = 0
    ) -> Frames:
        """Return the frames of a view, as `frames.choose_frames` does; no frames of a medium without them."""
        return choose_frames(available, count, extraction, turn=turn, word=word) if self.has_frames else NO_FRAMES

    def key_parts(self, view: Geometry) -> list[str]:
        """Return the parts of a cache key for the pixels of a view, besides the sample, its size, crop and flip."""
        return [self.decoding, *map(str, view.frames)] if self.has_frames else []


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case with the dot."""
    return f".{name.rpartition('.')[2].lower()}"
