"""Recognise the files of clips by their names and first bytes. This module does not load FFmpeg: image jobs use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SUFFIXES: Final = frozenset([".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"])
CONTAINERS: Final[Mapping[str, str]] = {"mov": "MP4 or MOV", "matroska": "WebM or Matroska", "avi": "AVI"}
"""FFmpeg's name of each container that is read, and what people call it."""

_STILL_BRANDS: Final = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_FIRST_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def container_name(data: bytes) -> str | None:
    """Return FFmpeg's name for the container that begins like `data`; None if it is no clip, as for a still image."""
    if data[4:8] in _FIRST_BOXES and data[8:12] not in _STILL_BRANDS:
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None
