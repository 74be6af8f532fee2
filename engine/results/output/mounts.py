"""Check that the output folder outlives its container."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Final

from engine.core.errors import OutputError
from engine.core.process.environment import IN_IMAGE, flag_variable
from engine.task.settings import DEFAULT_OUTPUT

ALLOW_EPHEMERAL_OUT: Final = "ALLOW_EPHEMERAL_OUT"
"""The variable that allows a result to be lost with the container."""
MOUNTS: Final = Path("/proc/self/mountinfo")
_SYSTEM: Final = frozenset(
    "bin dev etc lib lib64 opt proc root run sbin sys tmp usr var task cache".split()  # noqa: SIM905 - it fits a line
)
"""Top-level folders whose mounts belong to the container runtime or the GPU driver, or have another purpose."""


def require_mount(folder: Path, environment: Mapping[str, str], *, mounts: Path = MOUNTS) -> None:
    """Refuse an output folder that is deleted together with its container. Outside the image, nothing is refused.

    Raises:
        OutputError: the folder is on the container's own file system, and ALLOW_EPHEMERAL_OUT is not 1.
    """
    if not environment.get(IN_IMAGE) or flag_variable(environment, ALLOW_EPHEMERAL_OUT):
        return
    points = mount_points(os.fsdecode(mounts.read_bytes()))
    real = PurePath(os.path.realpath(folder))  # the files are where a link leads to
    if _mount_of(real, points) != PurePath("/"):
        return
    others = [str(point) for point in points if len(point.parts) > 1 and point.parts[1] not in _SYSTEM]
    elsewhere = f" (mounted instead: {', '.join(others[:5])})" if others else ""
    target = DEFAULT_OUTPUT if folder.is_relative_to(DEFAULT_OUTPUT) else folder
    raise OutputError(
        f"nothing is mounted at {folder}{elsewhere}: the result would be lost with the container; "
        f"add -v ./out:{target} to docker run, or a volume in Kubernetes, or set ALLOW_EPHEMERAL_OUT=1"
    )


def _mount_of(path: PurePath, points: Iterable[PurePath]) -> PurePath:
    """Return the nearest mount point above a path."""
    return max((point for point in points if path.is_relative_to(point)), key=lambda point: len(point.parts))


def mount_points(mountinfo: str) -> list[PurePath]:
    """Return all mount points, the root included, from the text of /proc/self/mountinfo (proc(5))."""
    return [PurePath(_unescape(line.split(" ")[4])) for line in mountinfo.splitlines()]


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes for blanks, tabs, line ends and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
