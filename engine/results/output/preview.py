"""`OUT/preview/`: what an unfinished task has made so far, under names for a person. Nothing depends on it.

Only files named like the results of a step are touched there: a folder of this name may be somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from engine.core.files import atomic_files
from engine.core.files.atomic_files import Stored

PREVIEW: Final = "preview"
_OURS: Final = re.compile(r"step-[0-9]{6,19}([-_./].*)?")


def preview_name(name: str) -> str:
    """Return the name in the preview for the published name of a result of an earlier step.

    `step-000200/0.png` becomes `step-000200-0.png`, `steps/000200_webui.safetensors` becomes
    `step-000200_webui.safetensors`; what lies in folders stays there.
    """
    if name.startswith("steps/"):
        return f"step-{name.removeprefix('steps/')}"
    return name.replace("/", "-")


def renew(root: Path, pictures: Mapping[str, Stored], weights: Mapping[str, Stored]) -> None:
    """Make the preview in the output folder `root` show these results, by their published names, and no others.

    Each file is there whole or not at all. Pictures are copied. Weights, which may be large, are second names of the
    stored files; where the file system has none, they are left out.

    Raises:
        OutputError: the disk refuses, or a picture is damaged.
    """
    folder = root / PREVIEW
    wanted = {preview_name(name): stored for name, stored in (*pictures.items(), *weights.items())}
    if folder.is_symlink():  # nothing is written through a link
        return
    with atomic_files.writing_to(folder):
        _delete(folder, keep=wanted)
        if wanted and not folder.is_dir():
            atomic_files.make_folder(folder, owner=root)
        for name, stored in pictures.items():
            path = folder / preview_name(name)
            if not path.exists():
                atomic_files.write_file(path, b"".join(stored.chunks()), owner=root)
        for name, stored in weights.items():
            path = folder / preview_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # mostly it is there
                os.link(stored.path, path, follow_symlinks=False)


def remove(root: Path) -> None:
    """Remove the preview from an output folder, as far as the disk allows."""
    with contextlib.suppress(OSError):
        _delete(root / PREVIEW, keep={})


def _delete(folder: Path, *, keep: Mapping[str, Stored]) -> None:
    """Delete the preview's files except those to keep, and its folders that are empty then."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if not _OURS.fullmatch(name.removeprefix(".")) or name in keep:
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _below(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, the contents of folders before them. Links are not followed."""
    for at, folders, files in os.walk(folder, topdown=False):
        yield from (Path(at, name) for name in (*files, *folders))
