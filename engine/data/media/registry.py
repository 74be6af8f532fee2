"""The media that can be trained on, by name. `FamilySpec.medium` names one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engine.data.media.image import IMAGE
from engine.data.media.medium import Medium
from engine.task.task import Dataset

MEDIA: Final[Mapping[str, Callable[[Dataset], Medium]]] = {"image": lambda dataset: IMAGE}
"""Name -> a function that returns the medium, with the task's settings for it."""


def is_sample(name: str) -> bool:
    """Return whether a file's name has a suffix of any medium."""
    return IMAGE.has_name(name)
