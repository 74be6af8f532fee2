"""Inside a job under test: sees every change of a file that Python makes, and can strike at any of them.

Python announces each operation to audit hooks before it happens (PEP 578). From that come two things. A record of what
the job must never do: writing outside its folders, connecting, unpickling, starting programs. And a count of the
changes below one folder, by which a test can name a moment exactly: kill the process, fail the operation or send a
signal there. `fsync` announces nothing and the swap of two names is made through ctypes: both are wrapped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> positions of the paths that it changes, each with the position of the descriptor that it is relative to.
_CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
_HARMLESS = ("/dev/null", "/dev/termination-log")


@dataclass(slots=True, kw_only=True)
class Orders:
    """What to watch, and what to do when.

    `allowed`: folders below which changes are expected. `watched`: the folder whose changes are counted.
    `at`: the change before which to strike, from 1. `strike`: "kill", "power" (kill, and lose what was not synced),
    a signal's name, or an errno's name, by which that operation fails. `forever`: that and each later one.
    `clock`: seconds by which the wall clock jumps with each call. `no_exchange`: the file system cannot swap names.
    `save_always`: the progress is saved after each step, however long that takes, so that the count is always the same.
    """

    report: str
    allowed: list[str] = field(default_factory=list)
    watched: str = ""
    at: int = 0
    strike: str = "kill"
    forever: bool = False
    clock: float = 0.0
    no_exchange: bool = False
    save_always: bool = False


class Witness:
    """One job's watcher. Its report: a JSON line for each counted change and for each thing that must not be."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._report = os.open(orders.report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._allowed = [os.path.realpath(folder) for folder in orders.allowed]
        self._watched = os.path.realpath(orders.watched) if orders.watched else ""
        self._count = 0
        self._unsynced: set[str] = set()
        self._struck = False

    def install(self) -> None:
        """Watch this process from now on."""
        self._wrap_sync()
        if self._orders.clock:
            self._wrap_clock()
        import engine.core.files.atomic_files

        real_exchange = engine.core.files.atomic_files._exchange

        def exchange(one: Any, other: Any) -> bool:
            if self._orders.no_exchange:
                return False
            self._change("exchange", [os.fspath(one), os.fspath(other)])
            return real_exchange(one, other)

        engine.core.files.atomic_files._exchange = exchange
        if self._orders.save_always:
            import engine.job.progress_saver

            engine.job.progress_saver._MAX_SAVING_SHARE = float("inf")
        sys.addaudithook(self._hook)

    def _wrap_sync(self) -> None:
        real_sync = os.fsync

        def fsync(file: Any) -> None:
            path = _opened(file if isinstance(file, int) else file.fileno())
            self._change("fsync", [path])
            real_sync(file)
            self._unsynced.discard(path)

        os.fsync = fsync

    def _wrap_clock(self) -> None:
        """Each look at the wall clock is far from the one before, forwards and backwards in turn."""
        real_time, step = time.time, self._orders.clock
        calls = iter(range(1 << 60))
        time.time = lambda: real_time() + step * (-1) ** next(calls)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes | os.PathLike) and flags & _WRITING:
                self._change("open", [self._full(path)])
        elif event in _CHANGES:
            self._change(event, [self._full(args[path], args[fd] if fd else -1) for path, fd in _CHANGES[event]])
        elif event == "socket.connect":
            self._tell("connect", str(args[1]))
        elif event in _NEVER:
            self._tell(event, ".".join(str(part)[:80] for part in args[:2]))

    def _full(self, path: Any, directory: int = -1) -> str:
        if isinstance(path, int):
            return _opened(path)
        folder = _opened(directory) if directory >= 0 else os.getcwd()  # noqa: PTH109
        parent, name = os.path.split(os.path.join(folder, os.fsdecode(path)))  # noqa: PTH118
        return os.path.join(os.path.realpath(parent), name)  # noqa: PTH118

    def _change(self, what: str, paths: list[str]) -> None:
        for path in paths:
            if path not in _HARMLESS and not any(_is_below(path, folder) for folder in self._allowed):
                self._tell("outside", f"{what} {path}")
        self._remember(what, paths)
        if self._watched and any(_is_below(path, self._watched) for path in paths):
            self._count += 1
            self._tell("change", f"{what} {paths[-1]}")
            if self._count == self._orders.at or (self._struck and self._orders.forever):
                self._strike()

    def _remember(self, what: str, paths: list[str]) -> None:
        """Which files have contents that a power failure would take."""
        if what == "open":
            self._unsynced.add(paths[0])
        elif what == "os.rename" and paths[0] in self._unsynced:
            self._unsynced.discard(paths[0])
            self._unsynced.add(paths[1])

    def _strike(self) -> None:
        self._struck = True
        how = self._orders.strike
        if how == "power":
            for path in self._unsynced:
                with contextlib.suppress(OSError):
                    os.truncate(path, os.stat(path).st_size // 2 * (self._count % 2))  # noqa: PTH116
        if how in ("kill", "power"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        else:
            number = getattr(errno, how)
            raise OSError(number, os.strerror(number))

    def _tell(self, kind: str, what: str) -> None:
        os.write(self._report, json.dumps([kind, what]).encode() + b"\n")


def _opened(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
