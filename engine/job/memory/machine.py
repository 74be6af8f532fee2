"""How much memory this machine, or the container that this is in, has left. No torch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

PROGRAM_BYTES: Final = 600 << 20
"""What the program itself takes of a machine's memory, before the first tensor."""
_CONTROL_GROUPS: Final = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder, limit, use, and which line of memory.stat is of files' contents that can be let go."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """The memory that this machine, or the container that this is in, has left for tensors; None where it hides that.

    The least of /proc/meminfo's MemAvailable and of what the control group still allows (version 2 or 1), where file
    contents that nobody has looked at lately count as free.
    """
    found = _free_bytes(root)
    return None if found is None else max(0, found - PROGRAM_BYTES)


def most_bytes(root: Path = Path("/")) -> int | None:
    """The most that could be had: with swap, and with what this program, which is running already, takes itself."""
    found = _free_bytes(root)
    if found is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        found += _numbers(root / "proc/meminfo")["SwapFree:"] << 10
    return found


def _free_bytes(root: Path) -> int | None:
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(_numbers(root / "proc/meminfo")["MemAvailable:"] << 10)
    for folder, limit, usage, inactive in _CONTROL_GROUPS:
        group = root / folder
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number, and no limit
            free = int((group / limit).read_text()) - int((group / usage).read_text())
            found.append(free + _numbers(group / "memory.stat")[inactive])
    return max(0, min(found)) if found else None


def _numbers(path: Path) -> dict[str, int]:
    """Each line's first word and the number behind it."""
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1}
