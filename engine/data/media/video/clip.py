"""The medium `video`: clips, and still images as clips of one frame. No torch: worker processes import this module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import PIL
from PIL import Image

from engine.data.media import image
from engine.data.media.clip_facts import ClipFacts
from engine.data.media.geometry import Geometry, UnreadableImage
from engine.data.media.medium import Medium, Pixels
from engine.data.media.sample_names import OF_VIDEOS
from engine.data.media.video.container import READER_VERSION
from engine.data.media.video.decoding import check, frames, read_facts
from engine.data.media.video.signatures import SUFFIXES, container_name
from engine.task.plan.extent import Extent


def measure(data: bytes, *, frame_rate: float | None) -> Extent:
    """Return a clip's upright size and its number of frames at `frame_rate`. Raises UnreadableImage."""
    return facts(data, frame_rate=frame_rate).extent


def facts(data: bytes, *, frame_rate: float | None) -> ClipFacts:
    """Return the facts about a clip or a still image. Raises UnreadableImage."""
    if container_name(data) is not None:
        return read_facts(data, frame_rate)
    with _as_either():
        width, height = image.image_size(data)
    return ClipFacts(width=width, height=height, frames=1, file_frames=1, file_rate=None, codec="")


def check_clip(data: bytes, is_over: Callable[[], bool] = lambda: False, *, frame_rate: float | None) -> Extent:
    """Decode a clip, completely unless `is_over` returns True before, and return what `measure` returns.

    Raises UnreadableImage.
    """
    if container_name(data) is None:
        with _as_either():
            return image.check(data)
    return check(data, frame_rate, is_over).extent


def render(data: bytes, view: Geometry, *, frame_rate: float | None) -> Pixels:
    """Return the frames `view.frames` of a clip: RGB, uint8, (frames, height, width, 3), C-contiguous, writable.

    Each is resized, cropped and mirrored as `image.render` does it with an image. Raises UnreadableImage.
    """
    if container_name(data) is None:
        return image.render(data, view)[None]
    width, height = view.target
    shown = np.empty((len(view.frames), height, width, 3), np.uint8)
    for index, pixels in enumerate(frames(data, view.frames, frame_rate, size=view.original)):
        shown[index] = _view(pixels, view)
    return shown


def middle_frame(data: bytes) -> Image.Image:
    """Return a clip's middle frame, or a whole still image, upright in RGB. Raises UnreadableImage."""
    if container_name(data) is None:
        return image.decode(data)
    found = read_facts(data, None)
    (pixels,) = frames(data, [(found.frames - 1) // 2], None)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(found.extent.size, Image.Resampling.BILINEAR)


def has_alpha(data: bytes) -> bool:
    """Return whether a still image is transparent; a clip's alpha channel is not used. Raises UnreadableImage."""
    return container_name(data) is None and image.has_alpha(data)


def has_more_frames(data: bytes) -> bool:
    """Return whether a sample has frames that no view shows: those of an animated image after its first."""
    return container_name(data) is None and image.has_more_frames(data)


@contextmanager
def _as_either() -> Iterator[None]:
    """Return a context that refuses bytes of an unknown format as what might have been a clip or an image."""
    try:
        yield
    except image.UnknownFormatError:
        formats = ", ".join(image.FORMATS)
        raise UnreadableImage(
            f"it is neither a video (MP4, MOV, WebM, Matroska, AVI) nor an image ({formats}) that can be read"
        ) from None


def _view(pixels: Pixels, view: Geometry) -> Pixels:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture = picture.resize(view.resized, Image.Resampling.BILINEAR).crop(view.box)
    if view.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


@functools.cache
def video_medium(frame_rate: float | None) -> Medium:
    """Return the medium `video`, whose clips have `frame_rate` frames a second; None keeps each file's own frames."""
    version = f"{READER_VERSION}, Pillow {PIL.__version__}, {frame_rate} frames a second"
    return Medium(
        suffixes=SUFFIXES | image.IMAGE.suffixes,
        reader_version=version,
        has_frames=True,
        libraries=("av",),
        decoding=version,
        measure=functools.partial(measure, frame_rate=frame_rate),
        check=functools.partial(check_clip, frame_rate=frame_rate),
        check_in_time=functools.partial(check_clip, frame_rate=frame_rate),
        render=functools.partial(render, frame_rate=frame_rate),
        check_mask=image.check_mask,
        render_mask=image.render_mask,
        has_alpha=has_alpha,
        has_more_frames=has_more_frames,
        read_facts=functools.partial(facts, frame_rate=frame_rate),
        names=OF_VIDEOS,
        still_suffixes=image.IMAGE.suffixes,
    )
