"""The geometry of a visit: how an image is resized and cropped. Arithmetic on sizes, without pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.task.plan.extent import Extent

Size = tuple[int, int]
"""(width, height) in pixels, upright (EXIF applied)."""

MAX_RESIZED_PIXELS: Final = 2**26
"""Limit on the pixels of a resized image: one of 1 x 100,000 pixels grows huge when its shorter side becomes 512.
2**26 pixels are 200 MB of RGB."""


class UnreadableImage(Exception):  # noqa: N818  # a property of the image: the job goes on without it
    """The bytes are not an image that can be trained on. `str(error)` is the reason, in a few words."""


class UnfitImage(UnreadableImage):
    """The sample cannot be shown at the size that was asked for; it may be at another one."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one view of a clip."""

    positions: tuple[int, ...] = ()
    """Their positions in the clip, ascending; () for a medium without frames."""
    repeatable: bool = True
    """True if other visits show the same frames, so that caching them on disk is useful."""


NO_FRAMES: Final = Frames()


@dataclass(frozen=True, slots=True)
class Geometry:
    """The resizing, crop and flip of one visit. Sizes are (width, height) in pixels, upright (EXIF applied).

    The image of size `original` is resized to `resized`, then cropped to `target` with the upper left corner at
    (`left`, `top`) and, with `flip`, mirrored left to right. `repeatable` means that all visits with this `flip` show
    the same pixels, whatever their crop words, so that caching them on disk is useful.
    """

    original: Size
    resized: Size
    target: Size
    top: int
    left: int
    flip: bool
    repeatable: bool
    frames: tuple[int, ...] = ()
    """The positions of the frames that are shown, in the clip at the medium's frame rate; () for an image."""

    @property
    def extent(self) -> Extent:
        """The size of what is shown."""
        return Extent(*self.target, len(self.frames) or 1)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The crop of the resized image: left, upper, right, lower."""
        return (self.left, self.top, self.left + self.target[0], self.top + self.target[1])


def covering(size: Size, target: Size) -> Size:
    """Return the smallest (width, height) of this shape that covers `target`; for a square rounded as in torchvision.

    Raises UnfitImage if the result has more than `MAX_RESIZED_PIXELS`, UnreadableImage if there are no pixels.
    """
    width, height = size
    if min(size) < 1:
        raise UnreadableImage(f"it has no pixels ({width} x {height})")
    if target[0] * height >= target[1] * width:
        resized = (target[0], int(target[0] * height / width))
    else:
        resized = (int(target[1] * width / height), target[1])
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        wanted = " x ".join(str(side) for side in target)
        raise UnfitImage(f"its shape is too extreme ({width} x {height} pixels) to resize to {wanted}")
    return resized


def geometry(
    size: Size,
    *,
    target: Size,
    center_crop: bool,
    crop_words: tuple[int, int],
    flip: bool,
    frames: Frames = NO_FRAMES,
) -> Geometry:
    """Return the geometry that resizes an image to cover `target`, then crops the centre or a random place.

    Args:
        size: the image's upright (width, height) in pixels.
        target: (width, height) of the result in pixels.
        center_crop: crop the centre.
        crop_words: two raw 64-bit random words, for top and left; not used for a centre crop.
        flip: mirror left to right.
        frames: the frames of a clip to show.

    Raises:
        UnfitImage: the shape is so extreme that resizing it would need gigabytes.
    """
    resized = covering(size, target)
    slack_x, slack_y = resized[0] - target[0], resized[1] - target[1]
    if center_crop:
        top, left = round(slack_y / 2.0), round(slack_x / 2.0)
    else:
        top, left = _start(crop_words[0], slack_y), _start(crop_words[1], slack_x)
    return Geometry(
        original=size,
        resized=resized,
        target=target,
        top=top,
        left=left,
        flip=flip,
        repeatable=frames.repeatable and (center_crop or slack_x == slack_y == 0),
        frames=frames.positions,
    )


def _start(word: int, extent: int) -> int:
    """Return one of the `extent + 1` crop positions, from the word's upper 32 bits by multiplication and shift."""
    return ((word >> 32) * (extent + 1)) >> 32
