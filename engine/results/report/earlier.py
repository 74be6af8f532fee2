"""Read a chain's earlier tasks, their validation images and times, from the report of the last one.

A checkpoint has no interim images, and nothing of the time that its training took: its bytes depend on neither. The
report has both, of the whole chain so far, so each task's report takes them from the one before. That file may come
from a stranger: only step numbers, durations and small PNG files are taken from it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Final

from engine.results.report.pictures import PNG_START, png_size
from engine.results.report.text import as_html, mapping_of

_PNG: Final = "data:image/png;base64,"
_SOURCES: Final = {"img": "src", "video": "poster"}
"""Element -> its attribute with a PNG file: of a clip, a still."""
_MAX_BYTES: Final = 2**24
_MAX_PIXELS: Final = 4096
"""The largest width and height of an image to take over; larger ones are left out."""
_MAX_IMAGES: Final = 1000
_MAX_SECONDS: Final = 1e10


@dataclass(frozen=True, slots=True)
class Earlier:
    """The chain's tasks before this one."""

    pictures: Mapping[str, Sequence[tuple[int, bytes]]] = field(default_factory=dict)
    """Step and PNG of the images by `Picture.key`, in the order of the steps."""
    seconds: Sequence[float | None] = ()
    """The wall time of each task from the first one; None where it is not known. May be shorter than the chain."""
    is_known: bool = False
    """False if there is no report of the task before."""


def record(checkpoint: str | None, parent: str | None, seconds: Sequence[float | None]) -> str:
    """Return an attribute for the page by which `read` knows it.

    Args:
        checkpoint: the digest of the task's result; None without one.
        parent: the digest of the checkpoint from which the task continues; None for the first task.
        seconds: the wall time of each of the chain's tasks, this one last; None where it is not known.
    """
    rounded = [None if value is None else round(value, 3) for value in seconds]
    value = {"checkpoint": checkpoint, "parent": parent, "seconds": rounded}
    return f'data-record="{as_html(json.dumps(value))}"'


def read(page: str, digest: str, step: int) -> Earlier:
    """Return what a report tells of a chain up to the checkpoint with this digest, which is of global step `step`.

    It may be the report of the task that made this checkpoint, or of one that continues from it and has no result yet:
    a job that goes on in its own folder finds the report that it wrote itself before it was interrupted.
    """
    found = _Reader()
    found.feed(page)
    seconds = [_duration(value) for value in found.seconds]
    if found.digests.get("checkpoint") != digest:
        if found.digests.get("parent") != digest:
            return Earlier()
        seconds = seconds[:-1]
    pictures = {
        key: sorted((at, png) for at, png in images.items() if at <= step) for key, images in found.pictures.items()
    }
    return Earlier(pictures, seconds, is_known=True)


def _duration(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and 0 <= value < _MAX_SECONDS else None


class _Reader(HTMLParser):
    """Collects the record and the images with a key and a step from a page."""

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, Any] = {}
        self.seconds: list[Any] = []
        self.pictures: dict[str, dict[int, bytes]] = {}
        self._count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "main" and "data-record" in values:
            self._take_record(values["data-record"])
        elif tag in _SOURCES and "data-key" in values and self._count < _MAX_IMAGES:
            self._count += 1
            self._take_image(values["data-key"], values.get("data-step", ""), values.get(_SOURCES[tag], ""))

    def _take_record(self, text: str) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            self.digests = dict(mapping_of(json.loads(text)))
            seconds = self.digests.pop("seconds", None)
            self.seconds = seconds if isinstance(seconds, list) else []

    def _take_image(self, key: str, step: str, source: str) -> None:
        if not source.startswith(_PNG) or not (step.isascii() and step.isdigit() and len(step) < 16):
            return
        if len(source) > _MAX_BYTES:
            return
        with contextlib.suppress(binascii.Error):
            png = base64.b64decode(source.removeprefix(_PNG), validate=True)
            if png.startswith(PNG_START) and 0 < max(png_size(png)) <= _MAX_PIXELS:
                self.pictures.setdefault(key, {})[int(step)] = png
