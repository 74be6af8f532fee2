"""List the files below a folder, in an order that does not depend on the order of directory entries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.core.errors import DatasetError
from engine.core.files.folder_names import is_of_system, is_system_folder


@dataclass(slots=True)
class Tree:
    """The files and links below a folder, as sorted paths relative to it."""

    root: Path
    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Hidden files, and those in folders of operating systems (`is_system_folder`)."""
    linked_twice: list[str] = field(default_factory=list)
    """Links to folders whose files are already listed under another name."""
    not_followed: list[str] = field(default_factory=list)
    """Links to folders that were not followed."""


def walk(root: Path, *, follow_links: bool = True) -> Tree:
    """List all files below `root`, also those behind links to folders.

    Each folder is entered once, so that cycles of links end; a folder below `root` is listed under its own path rather
    than under that of a link. Raises DatasetError if a folder cannot be listed.
    """
    tree = Tree(root)
    entered: set[tuple[int, int]] = set()
    links = _enter("", tree, entered)
    while links and follow_links:
        found: list[str] = []
        for link in sorted(links):
            if _mark(f"{root}/{link}") in entered:
                tree.linked_twice.append(link)
            else:
                found += _enter(link, tree, entered)
        links = found
    tree.not_followed = sorted(links)
    tree.files.sort()
    tree.hidden.sort()
    return tree


def _enter(top: str, tree: Tree, entered: set[tuple[int, int]]) -> list[str]:
    """Add the files below the folder `top` to the tree, and return the links to folders there."""
    links: list[str] = []
    for folder, folders, files in os.walk(tree.root / top, onerror=_refuse):
        mark = _mark(folder)
        inside = Path(folder).relative_to(tree.root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        if mark in entered:  # reached through a link to a folder above one that was entered
            folders.clear()
            continue
        entered.add(mark)
        linked = {name for name in folders if os.path.islink(f"{folder}/{name}")}  # noqa: PTH114
        for name in filter(is_system_folder, folders):
            if name not in linked:
                tree.hidden.extend(prefix + file for file in _below(f"{folder}/{name}", name))
        folders[:] = [name for name in folders if not is_system_folder(name)]
        links += [prefix + name for name in folders if name in linked]
        for name in files:
            (tree.hidden if is_of_system(name) else tree.files).append(prefix + name)
    return links


def _below(folder: str, name: str) -> Iterator[str]:
    """Yield the files of an operating system's folder. Errors are ignored: none of these files is trained on."""
    for inside, _, files in os.walk(folder):
        yield from (name + inside[len(folder) :] + f"/{file}" for file in files)


def _mark(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    raise DatasetError(f"cannot list {error.filename}: {error.strerror}")
