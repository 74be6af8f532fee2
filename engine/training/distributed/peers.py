"""A ring of processes in which each listens to the one before it, so that all soon know when one ends.

The ending of a process, its code and reason, is passed around the ring. A killed process sends none, but the operating
system closes its connection at once; a process whose machine is lost or frozen is noticed after five minutes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import torch
import torch.distributed as dist

from engine.core.errors import BUG_CODE, Interrupted, JobError, PeerError, PeerInterrupted
from engine.core.process.environment import Place

HEARTBEAT_SECONDS: Final = 10.0
SILENCE: Final = datetime.timedelta(minutes=5)
"""The silence after which a process counts as lost."""
GRACE_SECONDS: Final = 20.0
"""The time that the main thread has for ending after another process has ended; NCCL may block it forever."""

_MESSAGE_BYTES: Final = 4096
_KILLED: Final = 75


@dataclass(frozen=True, slots=True)
class Ending:
    """The ending of a process of the job; code 0 means without an error."""

    rank: int
    code: int = 0
    kind: str = "done"
    message: str = ""
    was_killed: bool = False

    @property
    def is_interruption(self) -> bool:
        return self.kind == Interrupted.kind

    def error(self) -> PeerError | PeerInterrupted:
        """Return the error with which the other processes end."""
        if self.is_interruption:
            return PeerInterrupted(self.code - 128, self.message)
        return PeerError(self.code, self.kind, self.message, origin=self.rank, was_killed=self.was_killed)


def ending_of(error: BaseException, rank: int) -> Ending:
    """Return the ending of a process that `error` ends; for a PeerError, the ending of the process it is about."""
    if isinstance(error, PeerError):
        return Ending(error.origin, error.code, error.kind, str(error), error.was_killed)
    if isinstance(error, JobError | Interrupted):
        return Ending(rank, error.code, error.kind, str(error))
    return Ending(rank, BUG_CODE, "bug", f"a bug in this program: {type(error).__name__}: {error}")


class PeerWatch:
    """Receives heartbeats and the ending of the process before this one, and sends them to the one after it."""

    def __init__(self, place: Place, on_end: Callable[[BaseException], None]) -> None:
        """`on_end` is called, from another thread, with the error with which this process should end."""
        self._before = (place.rank - 1) % place.world_size
        self._after = (place.rank + 1) % place.world_size
        self._on_end = on_end
        self._group = dist.new_group(backend="gloo", timeout=SILENCE)
        self._found: Ending | None = None
        self._heard = threading.Event()
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self.is_ending = threading.Event()
        """Set while the main thread is ending."""
        self._listener = threading.Thread(target=self._listen, name="peers", daemon=True)
        self._beater = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._listener.start()
        self._beater.start()

    def news(self, *, seconds: float) -> Ending | None:
        """Return how another process ended, after waiting for it up to `seconds`; None if none has."""
        self._heard.wait(seconds)
        return self._found

    def close(self, ending: Ending) -> None:
        """Send this process's ending to the next one, and wait up to 3 seconds for that of the one before."""
        self.is_ending.set()
        self._closing.set()
        self._send(ending)
        # A message may be lost if its sender ends before it is read.
        self._listener.join(timeout=3.0)

    def _listen(self) -> None:
        ending = self._receive()
        if ending.code == 0:
            return
        self._found = ending
        self._heard.set()
        self._send(ending)
        if not self.is_ending.is_set():
            self._on_end(ending.error())
        if not self.is_ending.wait(GRACE_SECONDS):
            os._exit(ending.code)

    def _receive(self) -> Ending:
        message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        while True:
            try:
                dist.recv(message, src=self._before, group=self._group)
            except RuntimeError:
                reason = f"process {self._before} of the job or its machine was killed or lost; run the command again"
                return Ending(self._before, _KILLED, "temporary", reason, was_killed=True)
            text = message.numpy().tobytes().rstrip(b"\0")
            if text:  # an empty message is a heartbeat
                return Ending(**json.loads(text))

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_SECONDS):
            self._send(None)

    def _send(self, ending: Ending | None) -> None:
        message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        if ending is not None:
            short = asdict(ending) | {"message": ending.message[:300]}  # at most 12 bytes per character
            data = json.dumps(short).encode()
            message[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with self._sending, contextlib.suppress(RuntimeError):  # the next process may have ended
            dist.send(message, dst=self._after, group=self._group)
