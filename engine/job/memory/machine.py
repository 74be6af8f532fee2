"""The machine that a job runs on, and how much memory it, or this container, has left. No torch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAM_BYTES: Final = 600 << 20
"""Memory that the program itself takes on the machine, before the first tensor."""
_CONTROL_GROUPS: Final = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder, file of the limit, file of the use, and the line of memory.stat for file contents that can be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that a job runs on; with several processes, the share of one of them."""

    device: str
    """The kind of device: cuda or cpu."""
    available: int | None
    """Bytes of memory on that device that are free before the job; None is unknown."""
    main_available: int | None = None
    """Bytes of main memory of a machine with a GPU; None is unknown. Without effect on a CPU."""
    num_processes: int = 1
    """Number of processes that train together."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this machine or container has left for tensors; None if it cannot be found out.

    It is the lesser of MemAvailable in /proc/meminfo and of what the control group (version 2 or 1) still allows, where
    inactive file contents count as free.
    """
    found = _free_bytes(root)
    return None if found is None else max(0, found - PROGRAM_BYTES)


def most_bytes(root: Path = Path("/")) -> int | None:
    """Return the most that could become available: with swap and this program's own share; None is unknown."""
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
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is not a number, and not a limit
            free = int((group / limit).read_text()) - int((group / usage).read_text())
            found.append(free + _numbers(group / "memory.stat")[inactive])
    return max(0, min(found)) if found else None


def _numbers(path: Path) -> dict[str, int]:
    """Return the number after the first word of each line."""
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1}
