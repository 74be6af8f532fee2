"""A medium of one file: short clips without compression.

Its row is `MEDIA["clip"] = MediumRow(CLIP.suffixes, lambda dataset: CLIP)`.
"""

import struct

import numpy as np

from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium
from engine.task.plan.extent import Extent

_HEADER = struct.Struct("<4sHHH")
"""`CLIP`, then the number of frames, height and width."""


def clip(seed, size=(8, 8), frames=2):
    """An encoded clip of noise."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return _HEADER.pack(b"CLIP", frames, height, width) + pixels.tobytes()


def _header(data):
    if len(data) < _HEADER.size or data[:4] != b"CLIP":
        raise UnreadableImage("it is not a clip")
    _, frames, height, width = _HEADER.unpack_from(data)
    return frames, height, width


def _frames(data):
    shape = (*_header(data), 3)
    if len(data) != _HEADER.size + np.prod(shape):
        raise UnreadableImage("it is cut")
    return np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(shape)


def _shown(frames, view):
    """Resized by the nearest pixel, cropped and mirrored."""
    (width, height), (left, upper, right, lower) = view.resized, view.box
    rows = np.arange(height) * frames.shape[1] // height
    columns = np.arange(width) * frames.shape[2] // width
    shown = frames[:, rows[upper:lower]][:, :, columns[left:right]]
    return np.ascontiguousarray(shown[:, :, ::-1] if view.flip else shown)


def measure(data):
    _, height, width = _header(data)
    return Extent(width, height)


def check(data):
    _frames(data)
    return measure(data)


def render(data, view):
    """(frames, height, width, 3)"""
    return _shown(_frames(data), view)


def check_mask(data, size):
    if check(data).size != size:
        raise UnreadableImage("its mask has another shape")


def render_mask(data, view, size, *, alpha):
    if alpha:
        return np.full(size[::-1], 255, np.uint8)
    check_mask(data, view.original)
    mask = _shown(_frames(data), view)[0, :, :, 0]
    return mask[:: mask.shape[0] // size[1], :: mask.shape[1] // size[0]]


def has_alpha(data):
    return False


def has_more_frames(data):
    return False  # all of them are shown


CLIP = Medium(
    suffixes=frozenset([".clip"]),
    reader_version="1",
    measure=measure,
    check=check,
    render=render,
    check_mask=check_mask,
    render_mask=render_mask,
    has_alpha=has_alpha,
    has_more_frames=has_more_frames,
)
