"""A command measured as a whole process: wall and CPU seconds, peak memory, moments on the way."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Moment:
    """Seconds since a process was started."""

    wall: float
    cpu: float
    """Of the process and the children that it waited for: user and system, in units of a hundredth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of a command. Seconds are of the process and all that it waited for."""

    code: int
    wall: float
    cpu: float
    peak_rss: int
    """Bytes of the process itself, pages of mapped files among them, which the system may take back."""
    peak_anonymous: int
    """Bytes without them, as seen every 10 ms."""
    moments: dict[str, Moment] = field(default_factory=dict)
    """When something showed."""


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    watch: Mapping[str, Callable[[], bool]] | None = None,
    until: str | None = None,
) -> Measured:
    """Run a command to its end, or `until` one of the things watched for shows: then it is killed, and its code is 0.

    Args:
        command: what to run.
        log: takes what it prints.
        env: more environment variables.
        watch: name -> whether something shows from outside, asked every 10 ms.
    """
    moments: dict[str, Moment] = {}
    pending = dict(watch or {})
    done = threading.Event()
    with log.open("wb") as file:
        start = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )

        def now() -> Moment:
            return Moment(time.monotonic() - start, cpu_seconds(process.pid))

        memory = _Memory(process.pid)

        def look() -> None:
            memory.look()
            for name in [name for name, shows in pending.items() if shows()]:
                moments[name] = now()
                del pending[name]
                if name == until:
                    process.kill()

        watcher = threading.Thread(target=_repeat, args=(look, done))
        watcher.start()
        # wait4 gives this child's own accounting; its waited-for children are in it.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    return Measured(
        code=0 if until in moments else process.returncode,
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_rss=memory.peak,
        peak_anonymous=memory.peak_anonymous,
        moments=moments,
    )


class _Memory:
    """Of a process, as proc(5) says in `status`; the accounting of wait4 also has what its parent had at the fork."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self.peak = self.peak_anonymous = 0

    def look(self) -> None:
        with contextlib.suppress(OSError):
            found = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB$", self._path.read_text(), re.MULTILINE))
            self.peak = max(self.peak, int(found.get("VmHWM", 0)) << 10)
            self.peak_anonymous = max(self.peak_anonymous, int(found.get("RssAnon", 0)) << 10)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and the children it has waited for; 0 where it is gone (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def _repeat(look: Callable[[], None], done: threading.Event) -> None:
    while not done.wait(0.01):
        look()
