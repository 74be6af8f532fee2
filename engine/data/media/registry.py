"""The media that can be trained on, by name. `FamilySpec.medium` names one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engine.data.media.image import IMAGE
from engine.data.media.medium import Medium
from engine.task.task import Dataset


def _video(dataset: Dataset) -> Medium:
    from engine.data.media.video.clip import video_medium  # loads FFmpeg, which images do without

    return video_medium(dataset.frame_rate)


MEDIA: Final[Mapping[str, Callable[[Dataset], Medium]]] = {
    "image": lambda dataset: IMAGE,
    "video": _video,
}
"""Name -> a function that returns the medium, with the task's settings for it."""


def is_sample(name: str) -> bool:
    """Return whether a file's name has a suffix of any medium."""
    return any(make(_NO_SETTINGS).has_name(name) for make in MEDIA.values())


_NO_SETTINGS: Final = Dataset()
