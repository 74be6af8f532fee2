"""The facts about a clip that are known without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from engine.task.plan.extent import Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """The facts about a clip, from its packets and its first frame. A still image is a clip of one frame."""

    width: int
    """Pixels, upright, as shown: turned by the file's matrix, stretched by its pixels' aspect ratio."""
    height: int
    frames: int
    """The number of frames at the frame rate that was asked for."""
    file_frames: int
    file_rate: Fraction | None
    """Frames a second of the file, on average; None for a clip of one frame."""
    codec: str
    """The codec's usual name; empty for a still image."""
    has_variable_rate: bool = False
    is_turned: bool = False
    """True if the file's matrix turns or mirrors the stored frames."""

    @property
    def extent(self) -> Extent:
        """The upright size and the number of frames at the frame rate that was asked for."""
        return Extent(self.width, self.height, self.frames)

    @property
    def is_still(self) -> bool:
        """True for an image file."""
        return not self.codec
