"""A task's names as paths of this machine, where they are paths."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from .task import Task


def resolve_paths(task: Task, folder: Path) -> Task:
    """Make the task's paths absolute; relative ones start from `folder`.

    `model.name`, `dataset.name` and `validation.dataset.name` are paths if they are written as one (`./x`, `../x`,
    `/x`, `~/x`), whether there is such a file or not, or if there is one; anything else is a Hub ID and stays.
    `checkpoint` is always a path.
    """
    name, checkpoint, held_out = task.dataset.name, task.checkpoint, task.validation.dataset
    if held_out is not None and held_out.name is not None:
        held_out = replace(held_out, name=_local_or_hub(held_out.name, folder))
    return replace(
        task,
        model=replace(task.model, name=_local_or_hub(task.model.name, folder)),
        dataset=replace(task.dataset, name=None if name is None else _local_or_hub(name, folder)),
        validation=replace(task.validation, dataset=held_out),
        checkpoint=None if checkpoint is None else str(_absolute(checkpoint, folder)),
    )


def _local_or_hub(name: str, folder: Path) -> str:
    path = _absolute(name, folder)
    explicit = name in (".", "..") or name.startswith(("/", "./", "../", "~"))
    return str(path) if explicit or _exists(path) else name


def _absolute(name: str, folder: Path) -> Path:
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # no such user, no home: then ~ is a name like any other
        path = path.expanduser()
    return folder.absolute() / path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # there is something; who loads it says what is wrong
        return True
    except OSError:  # no path at all, as a name that is too long
        return False
