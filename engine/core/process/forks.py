"""Run a program in a child forked from this process, which has already imported what the program needs.

Only a process with one thread can be forked safely: another one's locks would stay locked in the child. And what has
asked CUDA for its devices cannot use CUDA after a fork. Where either holds, the child starts an interpreter of its own
instead, so that every process may call this.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from engine.core.errors import BUG_CODE

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_FORKED_SAFELY: Final = "jemalloc_bg_thd"
"""The thread of the allocator jemalloc, which pyarrow brings along; jemalloc stops it before a fork."""
_LOOK_SECONDS: Final = 0.05


class Child:
    """A child process: what this program uses of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for the signal that killed the child; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_LOOK_SECONDS)
        return code

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the child is known to have ended. A signal handler may call this."""
        if self.returncode is None:
            os.kill(self.pid, signum)


def start(
    program: str, arguments: Sequence[str], run: Callable[[], int], *, prepare: Callable[[], None] | None = None
) -> Child:
    """Start `run` in a forked child, or `program` with `arguments` in an interpreter of its own where that is not safe.

    The child is in a session of its own, and its signals are at their defaults.

    Args:
        program: the path of the Python program of which `run` is the main function.
        arguments: its command line.
        run: returns the exit code.
        prepare: called in the child before anything else, in either case.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command, is_alone = [sys.executable, program, *arguments], _is_alone()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # the child must not run this process's handlers
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(command, run if is_alone else None, before, prepare)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Child(pid)


def _is_alone() -> bool:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name != _FORKED_SAFELY for name in names) == 1


def _be_child(
    command: list[str],
    run: Callable[[], int] | None,
    mask: set[int | signal.Signals],
    prepare: Callable[[], None] | None,
) -> NoReturn:
    code = BUG_CODE
    try:
        os.setsid()
        for signum in _HANDLED:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if prepare is not None:
            prepare()
        if run is None or _has_lost_cuda():
            os.execv(command[0], command)
        sys.argv = command[1:]
        code = run()
        threading._shutdown()  # type: ignore[attr-defined]  # as at the interpreter's end: waits for threads
        atexit._run_exitfuncs()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)  # taking down the interpreter would copy the memory shared with the parent


def _has_lost_cuda() -> bool:
    """Return whether torch was imported and had asked CUDA for its devices before the fork."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())
