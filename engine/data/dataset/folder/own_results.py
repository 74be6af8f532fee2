"""Find the files in a dataset's folder that jobs of this program have written. They are not part of the dataset.

The output folder may be the dataset's folder or a folder in it, such as that of a chain's earlier task. Its files are
recognised by their content, not by their names alone: a dataset may have a folder `validation` of its own.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.core.files.atomic_files import read_plain

_MAX_BYTES: Final = 64 << 20
_MAX_LINE: Final = 1 << 16


def result_files(root: Path, files: Sequence[str]) -> list[str]:
    """Return those of the files (paths relative to `root`) that jobs have written."""
    names: set[str] = set()
    folders: list[str] = []
    for mark, is_ours in _MARKS.items():
        for prefix in _folders_of(root, files, mark, is_ours):
            names |= {prefix + name for name in (mark, *_BESIDE)}
            folders += [prefix + name for name in _BELOW if "/" not in mark]
            if "/" in mark:
                folders.append(prefix + posixpath.dirname(mark) + "/")
    return [file for file in files if file in names or file.startswith(tuple(folders))]


def _folders_of(root: Path, files: Sequence[str], mark: str, is_ours: Callable[[Path], bool]) -> list[str]:
    """Return the folders in which the file `mark` is a job's, as prefixes of paths."""
    places = [file for file in files if file == mark or file.endswith(f"/{mark}")]
    return [place.removesuffix(mark) for place in places if is_ours(root / place)]


def _is_object_with(*keys: str) -> Callable[[Path], bool]:
    def is_ours(path: Path) -> bool:
        value = _read(path, lambda: read_plain(path, _MAX_BYTES))
        return isinstance(value, Mapping) and value.keys() >= {*keys}

    return is_ours


def _is_log(path: Path) -> bool:
    def first_line() -> bytes:
        with path.open("rb") as file:
            return file.readline(_MAX_LINE)

    value = _read(path, first_line)
    return isinstance(value, Mapping) and value.keys() >= {"event", "step", "loss", "eta_seconds"}


def _is_list_of_pictures(path: Path) -> bool:
    value = _read(path, lambda: read_plain(path, _MAX_BYTES))
    return isinstance(value, list) and all(
        isinstance(row, Mapping) and row.keys() >= {"file", "prompt", "seed"} for row in value
    )


def _read(path: Path, read: Callable[[], bytes | None]) -> Any:
    try:
        return json.loads((read() if path.is_file() else None) or b"null")
    except (OSError, ValueError, RecursionError):
        return None


_MARKS: Final[Mapping[str, Callable[[Path], bool]]] = {
    "checkpoint/manifest.json": _is_object_with("files", "digest", "task_digest", "global_step"),
    "validation/prompts.json": _is_list_of_pictures,
    ".job/record.json": _is_object_with("task_digest", "parent", "request"),
    "result.json": _is_object_with("status", "code", "kind", "global_step", "checkpoint_digest"),
    "progress.jsonl": _is_log,
}
"""Files of an output folder -> whether a file of that name is a job's. If it is, so is everything in its own folder
(`checkpoint/`, `validation/`, `.job/`)."""
_BESIDE: Final = ("report.html", ".lock", "FINISH_NOW")
"""Further files that a job writes beside those of `_MARKS`."""
_BELOW: Final = ("preview/step-", "tensorboard/", "wandb/", "mlruns/")
"""Beginnings of the paths of what a job and its trackers write beside `result.json` and `progress.jsonl`."""
