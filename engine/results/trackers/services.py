"""Tracking services that the operator chose: each is told of the training in a process of its own.

The job writes JSON lines to that process's standard input, from a thread, and waits for nothing. So a service's library
is never in the job's process, and a service that hangs, fails or crashes costs a warning, and `CLOSE_SECONDS` at most
when the job ends. `service_process.py` is the other end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from engine.core.console import NOTE, say
from engine.core.process.startup import ENTRYPOINT
from engine.results.trackers.service import SERVICE_PROCESS, Followed, Message
from engine.results.trackers.speed import Speed

if TYPE_CHECKING:
    from engine.results.history import StepReport

CLOSE_SECONDS: Final = 5.0
"""The time that all services together have for sending the rest when the job ends."""
_LAST_LINE_SECONDS: Final = 0.5
_MAX_WAITING_BYTES: Final = 64 << 20
"""The bytes that wait for a service that does not take them. Beyond that it counts as hanging."""


class ServiceProcess:
    """A service, followed by a process that runs until `end`."""

    def __init__(self, name: str) -> None:
        self._problem: str | None = None
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._process = subprocess.Popen(
            [sys.executable, ENTRYPOINT, SERVICE_PROCESS, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the job is no signal to it, and its own processes end with it
        )
        self._reader = threading.Thread(target=self._read, name=f"{name} reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, name=f"{name} writer", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message without waiting for it to be taken.

        Raises:
            RuntimeError: the service has failed, or does not take what it is sent.
        """
        if self._problem is not None:
            raise RuntimeError(self._problem)
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        if self._waiting + len(line) > _MAX_WAITING_BYTES:
            self._problem = "it does not take what it is sent"
            raise RuntimeError(self._problem)
        self._waiting += len(line)
        self._lines.put(line)

    def finish(self) -> None:
        """Let the service send what it has and end. Does not wait for it."""
        self._lines.put(None)

    def end(self, deadline: float) -> None:
        """Wait until the process has ended, and end it at `deadline` (`time.monotonic`).

        Raises:
            RuntimeError: it did not end in time, or failed.
        """
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
            self._reader.join(_LAST_LINE_SECONDS)  # its last line may still be on its way
            if self._problem is None and code:
                self._problem = f"its process ended with code {code}"
        except subprocess.TimeoutExpired:
            self._problem = self._problem or f"it has not taken everything within {CLOSE_SECONDS:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._problem is not None:
            raise RuntimeError(self._problem)

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has ended: `end` says so
            while (line := self._lines.get()) is not None:
                pipe.write(line)
                pipe.flush()
                self._waiting -= len(line)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._problem = str(json.loads(line)["error"])


class Services:
    """The chosen services, as one tracker. Nothing that happens to one of them reaches the training."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._open: dict[str, ServiceProcess] = {}
        self._speed = Speed()
        self._visits_per_step = 1

    def begin(self, followed: Callable[[], Followed]) -> None:
        """Start the processes of the services."""
        if not self._names:
            return
        about = followed()
        self._visits_per_step = about.visits_per_step
        for name in self._names:
            with self._warning_of(name):
                self._open[name] = ServiceProcess(name)
        self._send({"follow": asdict(about)})

    @property
    def are_open(self) -> bool:
        """True while a service follows the training."""
        return bool(self._open)

    def phase(self, name: str) -> None:
        """Take note that a phase begins: the speed is counted from the first step on."""
        if name == "train":
            self._speed.begin()

    def step(self, report: StepReport) -> None:
        """Send the numbers of a trained step."""
        values = {
            "train/loss": report.loss,
            "train/learning_rate": report.learning_rate,
            "train/grad_norm": report.grad_norm,
            "train/images_per_second": round(self._speed.step() * self._visits_per_step, 3),
        }
        known = {key: value for key, value in values.items() if value is not None}
        self._send({"step": report.step, "values": known})

    def held_out_loss(self, step: int, loss: float | None) -> None:
        """Send a held-out loss, unless it is not finite."""
        if loss is not None:
            self._send({"step": step, "values": {"heldout/loss": loss}})

    def pictures(self, step: int, pictures: Mapping[str, bytes], prompts: Mapping[str, str]) -> None:
        """Send validation images: PNG and prompt by file name."""
        if not self._open:
            return
        shown = [
            {"name": name, "prompt": prompts.get(name, ""), "png": base64.b64encode(png).decode()}
            for name, png in pictures.items()
        ]
        self._send({"step": step, "pictures": shown})

    def close(self) -> None:
        """Let all services finish, and wait `CLOSE_SECONDS` at most. Further calls do nothing."""
        closing, self._open = self._open, {}
        for process in closing.values():
            process.finish()
        deadline = time.monotonic() + CLOSE_SECONDS
        for name, process in closing.items():
            with self._warning_of(name):
                process.end(deadline)

    def _send(self, message: Message) -> None:
        for name, process in list(self._open.items()):
            with self._warning_of(name):
                process.send(message)

    @contextlib.contextmanager
    def _warning_of(self, name: str) -> Iterator[None]:
        """Turn a failure of a service into a warning, and leave the service alone from then on."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            say(f"{NOTE}the tracker {name} failed ({error}); the training is not affected")
            process = self._open.pop(name, None)
            if process is not None:
                process.finish()
                with contextlib.suppress(RuntimeError):
                    process.end(time.monotonic())
