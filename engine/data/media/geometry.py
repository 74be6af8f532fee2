"""Which part of a picture a visit shows: arithmetic on sizes, without pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Size = tuple[int, int]
"""(width, height) in pixels, upright (EXIF applied)."""

MAX_RESIZED_PIXELS: Final = 2**26
"""A sliver of 1 x 100,000 is small until its shorter side is 512. 2**26 pixels are 200 MB of RGB."""


class UnreadableImage(Exception):  # noqa: N818  # a fact about the image, which the job survives
    """These bytes are not an image that can be trained on. `str(error)` says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one visit cuts its part out of an image. Sizes are (width, height) in pixels, upright (EXIF applied).

    The image of size `original` is resized to `resized`, then the part of size `target` whose upper left corner is at
    (`left`, `top`) is taken and, with `flip`, mirrored left to right. `repeatable`: no crop word could have given
    another part, so that all visits with this `flip` show the same pixels (and caching them on disk pays).
    """

    original: Size
    resized: Size
    target: Size
    top: int
    left: int
    flip: bool
    repeatable: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The part of the resized image that is shown: left, upper, right, lower."""
        return (self.left, self.top, self.left + self.target[0], self.top + self.target[1])


def covering(size: Size, target: Size) -> Size:
    """The smallest (width, height) of this shape that covers `target`; for a square torchvision's own rounding.

    Raises UnreadableImage when the shape is so extreme that resizing it would need gigabytes.
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
        raise UnreadableImage(f"its shape is too extreme ({width} x {height} pixels) to resize to {wanted}")
    return resized


def geometry(size: Size, *, target: Size, center_crop: bool, crop_words: tuple[int, int], flip: bool) -> Geometry:
    """Resize to cover `target` (width, height), then crop in the middle or at random.

    `size` is upright (width, height). `crop_words` are two raw 64-bit words, for top and left; unused in a centre
    crop. Raises UnreadableImage when the shape is so extreme that resizing it would need gigabytes.
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
        repeatable=center_crop or slack_x == slack_y == 0,
    )


def _start(word: int, extent: int) -> int:
    """One of the `extent + 1` crop positions from the word's upper half: multiply and shift, without modulo bias."""
    return ((word >> 32) * (extent + 1)) >> 32
