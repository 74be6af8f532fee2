"""Resolve the paths in a task, and explain errors about paths that do not exist."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from engine.core.errors import DatasetError, JobError, ModelError
from engine.core.files.folder_names import composed
from engine.core.messages import short, shown
from engine.task.key import Named
from engine.task.task import Task

_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_FILES: Final = {
    "model": (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"),
    "dataset": (
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"),
        *(".parquet", ".arrow", ".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".txt"),
    ),
}
"""Suffixes of names that are files and not Hub IDs."""
_HUB_PAGE: Final = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:datasets/)?([^/?#]+/[^/?#]+)/?"
)


def resolve_paths(task: Task, folder: Path) -> Task:
    """Return the task with absolute paths; relative ones start from `folder`.

    `model.name`, its components' names, `dataset.name` and `validation.dataset.name` are paths if they are written
    as one (`./x`, `../x`, `/x`, `~/x`), whether or not the file exists, or if a file of that name exists; anything else
    is a Hub ID and stays.
    `checkpoint` and `validation.prompts_file` are always paths.
    """
    components = task.model.components
    name, checkpoint, held_out = task.dataset.name, task.checkpoint, task.validation.dataset
    prompts = task.validation.prompts_file
    if held_out is not None and held_out.name is not None:
        held_out = replace(held_out, name=local_or_hub(held_out.name, folder))
    return replace(
        task,
        model=replace(
            task.model,
            name=local_or_hub(task.model.name, folder),
            components=Named(
                {name: replace(one, name=local_or_hub(one.name, folder)) for name, one in components.items()}
            ),
        ),
        dataset=replace(task.dataset, name=None if name is None else local_or_hub(name, folder)),
        validation=replace(
            task.validation, dataset=held_out, prompts_file=None if prompts is None else str(_absolute(prompts, folder))
        ),
        checkpoint=None if checkpoint is None else str(_absolute(checkpoint, folder)),
    )


@contextmanager
def looking_up(name: str, folder: Path, what: Literal["model", "dataset"], key: str) -> Iterator[None]:
    """Explain errors about a name that `resolve_paths` took for a Hub ID because `folder` has no file of that name.

    An error of the Hub that is raised inside the context is raised again with the note that there is no such folder.

    Args:
        name: the Hub ID.
        folder: where relative paths start.
        what: decides on the class of the error and on the suffixes that a file's name would have.
        key: the task's key that holds the name.

    Raises:
        ModelError, DatasetError: the name cannot be a Hub ID, or the Hub does not have it.
    """
    refused = ModelError if what == "model" else DatasetError
    path = folder.absolute() / name
    if advice := _no_hub_id(name, what):
        raise refused(f"{key} is {short(name)}: {advice}")
    if name.lower().endswith(_FILES[what]):
        raise refused(f"{key} is {short(name)}: there is no file {shown(str(path))}{nearest(path)}")
    if not _HUB_ID.fullmatch(name):
        raise refused(f"{key} is {short(name)}: there is no folder {shown(str(path))}{nearest(path)}")
    try:
        yield
    except JobError as error:
        if error.hub_id != name:
            raise
        raise type(error)(f"there is no folder {shown(str(path))}{nearest(path)}, and on the Hub: {error}") from error


def nearest(path: Path) -> str:
    """Return a hint for a message about a path that does not exist: a similar name, or "is it mounted?"."""
    path = path.absolute()
    parent = next((parent for parent in path.parents if parent.is_dir()), path)
    wanted = path.relative_to(parent).parts[0] if parent != path else path.name
    with contextlib.suppress(OSError):
        there = {name.casefold(): name for name in sorted(os.listdir(parent)) if not name.startswith(".")}  # noqa: PTH208
        close = difflib.get_close_matches(wanted.casefold(), there, n=1, cutoff=0.7)
        if close:
            return f" (did you mean {shown(there[close[0]])}?)"
    if parent / wanted == path:
        return " (is it mounted?)"
    return f" (nor {shown(str(parent / wanted))}: is it mounted?)"


def hub_page(name: str) -> str | None:
    """Return the Hub ID in the address of a repository's page; None if it is not such an address."""
    match = _HUB_PAGE.fullmatch(name)
    return shown(match[1]) if match else None


def as_spelled(path: str) -> str:
    """Return the path with its last name as the file system spells it.

    Names that differ only in Unicode normalisation count as the same: macOS writes accents in another form than other
    systems.
    """
    if path.isascii() or "\0" in path or os.path.lexists(path):
        return path
    folder, slash, name = path.rpartition("/")
    folder = as_spelled(folder) if folder else folder
    try:
        names = _composed_names(folder + slash, os.stat(folder + slash).st_mtime_ns)  # noqa: PTH116
    except OSError:
        return path
    return f"{folder}{slash}{names.get(composed(name), name)}"


@lru_cache(maxsize=64)
def _composed_names(folder: str, changed: int) -> dict[str, str]:
    """Return composed form -> name for a folder's entries; `changed` (mtime in ns) invalidates cached results."""
    return {composed(name): name for name in sorted(os.listdir(folder), reverse=True)}  # noqa: PTH208


def _no_hub_id(name: str, what: str) -> str | None:
    """Return why a name cannot be a Hub ID and what to write instead; None if it may be one."""
    if page := hub_page(name):
        return f"write the Hub ID alone, {page}"
    if re.match(r"https?://", name, re.IGNORECASE):
        return "it is a URL: put it into dataset.url"
    if re.match(r"file://", name, re.IGNORECASE):
        return "write the path alone, without file://"
    if "://" in name:
        return (
            f"it is a URL of another kind; expected a path or a Hub ID{' or an http(s) URL' if what == 'model' else ''}"
        )
    if re.match(r"[A-Za-z]:", name) or "\\" in name:
        return (
            "it is a Windows path; write it with / and relative to the task's folder; in a container write the mounted "
            "path, such as /task/images"
        )
    return None


def local_or_hub(name: str, folder: Path) -> str:
    """Return the absolute path that a name in a folder stands for, or the name if it is a Hub ID (`resolve_paths`)."""
    path = _absolute(name, folder)
    explicit = name in (".", "..") or name.startswith(("/", "./", "../", "~"))
    return str(path) if explicit or _exists(path) else name


def _absolute(name: str, folder: Path) -> Path:
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # if there is no such user or home folder, ~ is an ordinary name
        path = path.expanduser()
    return Path(as_spelled(str(folder.absolute() / path)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # it exists; loading it will report the error
        return True
    except OSError:  # not a possible path, such as a name that is too long
        return False
