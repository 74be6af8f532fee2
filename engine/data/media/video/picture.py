"""Turn a decoded frame into upright RGB.

Colours: swscale converts to 8 bits of full-range RGB with the matrix and range that the file states; BT.601 and limited
range where it states none, as FFmpeg does for every program that asks for RGB. Transfer functions and primaries are not
converted, so HDR (PQ, HLG) stays as dark and flat as it is stored. Chroma is interpolated in full, rounding is exact
and the code bit-exact: the same on every processor. 10 and 12 bits are brought to 8 with swscale's own dither, grey
becomes RGB, an alpha channel is dropped. Interlaced frames stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import numpy as np
from av.buffer import Buffer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Pixels

_SCALER: Final = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
)


def rgb(frame: VideoFrame, reformatter: VideoReformatter) -> Pixels:
    """Return a frame as it is stored: uint8 RGB, shape (height, width, 3)."""
    converted = reformatter.reformat(
        frame, format="rgb24", dst_color_range=ColorRange.JPEG, interpolation=_SCALER, threads=1
    )
    return np.asarray(converted.to_ndarray(), dtype=np.uint8)


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """Return a, b, c, d of the matrix by which a frame is to be shown: x' = ax + cy, y' = bx + dy; None without one."""
    matrix = cast("Mapping[Type, Buffer]", frame.side_data).get(Type.DISPLAYMATRIX)  # PyAV's stub knows a part of it
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    return a, b, c, d


def is_upright(matrix: tuple[int, int, int, int] | None) -> bool:
    """Return whether frames are shown as they are stored."""
    return matrix is None or not any(matrix) or (matrix[1:3] == (0, 0) and min(matrix[0], matrix[3]) > 0)


def swaps_sides(matrix: tuple[int, int, int, int] | None) -> bool:
    """Return whether width and height change places. Raises UnreadableImage for other angles than quarter turns."""
    if matrix is None or not any(matrix):
        return False
    a, b, c, d = matrix
    if (a and d and not b and not c) or (b and c and not a and not d):
        return bool(b)
    raise UnreadableImage("it is to be shown at an angle that is no quarter turn; save it upright")


def upright(pixels: Pixels, matrix: tuple[int, int, int, int] | None) -> Pixels:
    """Return a stored frame as it is to be shown. Pixels may be a view."""
    if matrix is None or not any(matrix):
        return pixels
    a, b, c, d = matrix
    if swaps_sides(matrix):
        pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
