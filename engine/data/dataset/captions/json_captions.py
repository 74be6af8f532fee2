"""Read captions from JSON: one file beside each image, or kohya's metadata, one file for all images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from engine.core.files.folder_names import composed, same_end, stem_of
from engine.data.dataset.images import images_among
from engine.data.dataset.reach import Reach, read_below
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium

MAX_FILE_BYTES: Final = 1 << 20
"""Size limit of a JSON file beside an image: downloaders put the metadata of a whole page there."""
MAX_METADATA_BYTES: Final = 256 << 20
_OBJECT_OF_OBJECTS: Final = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')


def files_beside(files: Sequence[str], medium: Medium) -> dict[str, str]:
    """Return the JSON files that have an image of the same name beside them: composed path without suffix -> file."""
    found = {stem_of(file): file for file in files if file.lower().endswith(".json")}
    if not found:
        return {}
    owners = set(map(stem_of, images_among(files, medium)))
    return {owner: file for owner, file in found.items() if owner in owners}


def read_beside(root: Path, file: str, column: str, reach: Reach) -> list[str] | None:
    """Return the captions under the key `column`, else `caption`, of the object in a file; None if there are none."""
    try:
        record = json.loads(read_below(root, file, reach, MAX_FILE_BYTES))
    except (UnreadableImage, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    value = record.get(column, record.get("caption"))
    captions: list[Any] = value if isinstance(value, list) else [value]
    return captions if captions and all(isinstance(caption, str) for caption in captions) else None


class PathCaptions:
    """kohya's metadata: captions by image path. The paths may be those of another machine."""

    def __init__(self, captions: Mapping[str, str], medium: Medium) -> None:
        self._medium = medium
        self._by_name: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for path, caption in captions.items():
            parts = self._parts(path.replace("\\", "/"))
            self._by_name.setdefault(parts[-1], []).append((parts, caption))

    def of(self, image: str) -> str | None:
        """Return the caption of the path with the longest common end; None if no caption or several are found."""
        parts = self._parts(image)
        found = self._by_name.get(parts[-1], [])
        most = max((same_end(path, parts) for path, _ in found), default=0)
        best = {caption for path, caption in found if same_end(path, parts) == most}
        return best.pop() if len(best) == 1 else None

    def _parts(self, path: str) -> tuple[str, ...]:
        """Return a path's folders and its name without an image's suffix, in composed form; at least one part."""
        stem = path.rpartition(".")[0] if self._medium.has_name(path) else path
        return PurePosixPath(composed(stem)).parts


def read_by_path(root: Path, files: Iterable[str], reach: Reach, medium: Medium) -> dict[str, PathCaptions]:
    """Return the captions of those JSON files that are kohya's metadata, by file."""
    found = {}
    for file in files:
        if file.lower().endswith(".json") and (captions := _captions_by_path(root, file, reach)):
            found[file] = PathCaptions(captions, medium)
    return found


def _captions_by_path(root: Path, file: str, reach: Reach) -> dict[str, str]:
    path = root / file
    if not path.is_file():  # a pipe may never end
        return {}
    try:
        with path.open("rb") as opened:
            if not _OBJECT_OF_OBJECTS.match(opened.read(4096)):
                return {}
        values = json.loads(read_below(root, file, reach, MAX_METADATA_BYTES))
    except (UnreadableImage, OSError, ValueError, RecursionError):
        return {}
    if not all(isinstance(value, dict) for value in values.values()):
        return {}
    captions = {name: _caption(value) for name, value in values.items() if name.strip("/\\")}
    return {name: caption for name, caption in captions.items() if caption is not None}


def _caption(value: Mapping[str, Any]) -> str | None:
    """Return caption and tags, joined as in sd-scripts (`FineTuningDataset`, library/train_util.py)."""
    given = [value.get("caption"), value.get("tags")]
    texts = [text for text in given if isinstance(text, str) and text]
    return ", ".join(texts) if texts else None
