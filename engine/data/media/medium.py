"""What a medium answers for: the size of an encoded sample, the pixels of one view of it, its mask, and its files.

A medium is one module with these functions and a `Medium` of them, and a row in `registry.py`. The functions belong to
modules, not to closures: workers of another process find them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.data.media.geometry import Geometry, Size

Pixels = npt.NDArray[np.uint8]


class RenderMask(Protocol):
    def __call__(self, data: bytes, view: Geometry, size: Size, *, alpha: bool) -> Pixels:
        """Return the part of a mask that `view` shows, at `size`: uint8, (height, width).

        `data` is the mask or, with `alpha`, the sample itself, whose opacity counts. Raises UnreadableImage.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """The functions of a medium. All of them raise UnreadableImage for bytes that cannot be trained on."""

    suffixes: frozenset[str]
    """How its files are named: lower-case, with the dot. The content decides what they are."""
    reader_version: str
    """The version of what reads headers: sizes that are remembered are forgotten when it changes."""
    read_size: Callable[[bytes], Size]
    """Upright (width, height) of an encoded sample, from its header alone."""
    check: Callable[[bytes], Size]
    """Decode a sample whole and forget it; its size."""
    render: Callable[[bytes, Geometry], Pixels]
    """One view of a sample: uint8, of the shape that the families of this medium encode; (height, width, 3) for an
    image."""
    check_mask: Callable[[bytes, Size], None]
    """Refuse what `render_mask` would refuse as the mask of a sample of this size."""
    render_mask: RenderMask
    has_alpha: Callable[[bytes], bool]
    """Whether parts of a sample are transparent."""
    has_more_frames: Callable[[bytes], bool]
    """Whether a sample goes on after what is shown of it."""

    def has_name(self, name: str) -> bool:
        """Whether a file's name ends as one of this medium does."""
        return f".{name.rpartition('.')[2].lower()}" in self.suffixes
