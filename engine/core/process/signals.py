"""Handle SIGTERM and SIGINT: stop at the next point where no work is lost. Note SIGUSR1: finish with what is there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from engine.core.errors import Interrupted

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends (Linux prctl)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def pass_finish_on() -> None:
    """Pass SIGUSR1 on to this process's children from now on: a launcher's processes are in sessions of their own."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for path in Path("/proc/self/task").glob("*/children"):
            for child in path.read_text().split():
                with contextlib.suppress(OSError):
                    if _handles(int(child), signum):
                        os.kill(int(child), signum)

    signal.signal(signal.SIGUSR1, pass_on)


def _handles(process: int, signum: int) -> bool:
    """Return whether a process has a handler for a signal, which would otherwise end it. Raises OSError."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


class Stop:
    """The handler of the job's signals. They raise `Interrupted` at once, or at the next `check` while deferred.

    A second signal ends the deferral, so that one need not wait for the end of a step. After `Interrupted` was raised
    further signals are ignored: the job is ending already.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._peer_error: BaseException | None = None
        self._is_deferring = False
        self._is_over = False
        self.is_finish_requested = False
        """True once SIGUSR1 has come: the task is to end after the current step, with a result."""

    def install(self) -> None:
        """Handle the signals from now on. Before torch is imported: as PID 1, a process has no default."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGUSR1, self._handle_finish)
        signal.signal(signal.SIGUSR2, self._handle_peer)

    @property
    def signum(self) -> int:
        """The signal that has come, or 0."""
        return self._signum or 0

    def peer_ended(self, error: BaseException) -> None:
        """End this process with `error`, since another process of the job has ended. Can be called from any thread."""
        self._peer_error = error
        os.kill(os.getpid(), signal.SIGUSR2)

    def _handle_finish(self, signum: int, frame: FrameType | None) -> None:
        self.is_finish_requested = True

    def _handle_peer(self, signum: int, frame: FrameType | None) -> None:
        error = self._peer_error
        if error is not None and not self._is_over and not self._is_deferring:
            self._is_over = True
            raise error

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_first = self._signum is None
        self._signum = signum
        if not self._is_over and not (is_first and self._is_deferring):
            raise self._interrupted(signum)

    def ignore(self) -> None:
        """Ignore signals from now on: the job is about to finish."""
        self._is_over = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals to the next `check`, or to the end of the block."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if not self._is_over and (self._signum is not None or self._peer_error is not None):
            raise self._interrupted(self.signum)

    def check(self, save: Callable[[], None], *, signum: int | None = None) -> None:
        """Save the progress and end the job if a signal has been received.

        Args:
            save: keeps the progress.
            signum: what all processes of the job agreed on, 0 to go on; None where this one decides for itself.

        Raises:
            Interrupted: a signal has come.
            PeerError: another process of the job has ended.
        """
        signum = self.signum if signum is None else signum
        if signum or self._peer_error is not None:
            save()
            raise self._interrupted(signum)

    def _interrupted(self, signum: int) -> BaseException:
        self._is_over = True
        if self._peer_error is not None:  # why other processes end, this one does too
            return self._peer_error
        name = signal.Signals(signum).name
        return Interrupted(signum, f"stopped by {name}; the same command continues from the saved progress")
