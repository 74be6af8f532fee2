"""The media that can be trained on, by name. `FamilySpec.medium` names one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from engine.core.errors import TaskError
from engine.data.media.image import IMAGE
from engine.data.media.medium import Medium, suffix_of
from engine.data.media.video.signatures import SUFFIXES
from engine.task.task import Dataset


def _video(dataset: Dataset) -> Medium:
    """Return the medium of clips. Raises TaskError if PyAV is not installed."""
    try:
        from engine.data.media.video.clip import video_medium  # loads FFmpeg, which images do without
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise TaskError(
            "clips are read and written with PyAV, which is not installed: pip install --no-deps -r requirements.txt"
        ) from None
    return video_medium(dataset.frame_rate)


class MediumRow(NamedTuple):
    """A medium in the table: what is known of it before what decodes its samples is loaded."""

    suffixes: frozenset[str]
    """`Medium.suffixes`."""
    make: Callable[[Dataset], Medium]
    """Returns the medium, with the task's settings for it."""


MEDIA: Final[Mapping[str, MediumRow]] = {
    "image": MediumRow(IMAGE.suffixes, lambda dataset: IMAGE),
    "video": MediumRow(IMAGE.suffixes | SUFFIXES, _video),
}


def is_sample(name: str) -> bool:
    """Return whether a file's name has a suffix of any medium."""
    return any(suffix_of(name) in row.suffixes for row in MEDIA.values())
