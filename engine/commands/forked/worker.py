"""Run the tasks of a folder as they appear in it.

    entrypoint.py worker --tasks tasks --output out [-- any flag of the training]

Each task runs in a process of its own, a child forked from this one, which has imported the libraries once.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.commands.forked.claims import ATTEMPTS, Claim, TaskFolder
from engine.commands.forked.status import Status
from engine.commands.forked.task import exit_code, preload, start_task
from engine.commands.program import program
from engine.core.console import say
from engine.core.errors import DeviceError, Interrupted, TaskError, TemporaryError
from engine.core.files import atomic_files, folder_lock
from engine.core.messages import duration_text
from engine.core.process.forks import Child
from engine.core.process.gpus import no_gpu
from engine.core.process.signals import die_with_parent
from engine.results import host
from engine.results.output.mounts import require_mount
from engine.task.settings import Settings, flag_parser, read_settings

DESCRIPTION: Final = """\
Run the tasks of a folder as they appear in it, one after the other, until SIGTERM.

A task is a file NAME.json in TASKS, written elsewhere and renamed into place. Its result goes to OUTPUT/NAME, its log
to OUTPUT/NAME/log.txt, and its file at the end to TASKS/done or TASKS/failed. Several workers may share both folders.
docs/worker.md says more.
"""
LOG: Final = "log.txt"
_LOOK_SECONDS: Final = 0.5
_GRACE_SECONDS: Final = 120.0
"""The time that a task has for saving its progress when it was told to end, before it is killed."""
_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A worker's settings, the same for all its tasks."""

    flags: list[str]
    """The training's flags, for each task."""
    device: str
    time_limit: float
    """Seconds that each start of a task may take."""
    exits_when_empty: bool


class Worker:
    """Claims tasks and runs them, one at a time."""

    def __init__(self, name: str, tasks: TaskFolder, status: Status, options: Options) -> None:
        self._name = name
        self._tasks = tasks
        self._status = status
        self._options = options
        self._child: Child | None = None
        self._signum = 0

    def run(self) -> None:
        """Run tasks until a signal comes or, with `exits_when_empty`, until none is left.

        Raises:
            Interrupted: SIGTERM or SIGINT has come. A task that was running has saved its progress.
            DeviceError: there is no GPU any more.
            OutputError: nothing can be written to the folders.
        """
        with self._handling_signals():
            while not self._signum:
                claim = self._tasks.claim()
                if claim is not None:
                    with contextlib.closing(claim):
                        self._run(claim)
                    continue
                if self._options.exits_when_empty and not self._tasks.num_later:
                    return
                self._status.set("idle")
                self._status.keep()
                time.sleep(_LOOK_SECONDS)
        raise Interrupted(self._signum, f"stopped by {signal.Signals(self._signum).name}; the same command goes on")

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT, and pass them and SIGUSR1 on to the task that runs."""

        def handle(signum: int, _: object) -> None:
            if signum in _STOPS:
                self._signum = signum
            if self._child is not None:
                _send(self._child, signum)

        before = {signum: signal.signal(signum, handle) for signum in (*_STOPS, signal.SIGUSR1)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _run(self, claim: Claim) -> None:
        if claim.record.attempts >= ATTEMPTS:  # after a last temporary failure it would have ended
            self._end(claim, exit_code(-signal.SIGKILL), f"it was started {ATTEMPTS} times, and its worker was killed")
            return
        claim.begin(self._name)
        attempt = f", attempt {claim.record.attempts} of {ATTEMPTS}" if claim.record.attempts > 1 else ""
        say(f"{claim.name}: begins{attempt}", task=claim.name)
        flags = [*self._options.flags, "--task", str(claim.file), "--output-dir", str(claim.output)]
        with _ending(start_task(flags, prepare=_preparing(claim.output / LOG))) as self._child:
            if self._signum:  # it came before there was a child to pass it on to
                _send(self._child, self._signum)
            self._status.set("running", task=claim.name, task_pid=self._child.pid)
            code, is_over_time = self._wait(self._child)
        self._child = None
        self._settle(claim, code, is_over_time=is_over_time)

    def _wait(self, child: Child) -> tuple[int, bool]:
        """Return the task's exit code, and whether it was stopped because of the time limit."""
        limit, is_over_time = time.monotonic() + self._options.time_limit, False
        while True:
            try:
                return exit_code(child.wait(timeout=_LOOK_SECONDS)), is_over_time
            except subprocess.TimeoutExpired:
                self._status.keep()
            if time.monotonic() >= limit:
                _send(child, signal.SIGKILL if is_over_time else signal.SIGTERM)
                limit, is_over_time = time.monotonic() + _GRACE_SECONDS, True

    def _settle(self, claim: Claim, code: int, *, is_over_time: bool) -> None:
        """Record how a start of a task ended, and what follows from it."""
        if is_over_time and code:
            limit = duration_text(self._options.time_limit)
            self._end(claim, code, f"the time limit of {limit} is over")
        elif self._signum and code in {128 + signum for signum in _STOPS}:
            claim.stop(code)
            say(f"{claim.name}: stopped; its progress is saved", task=claim.name)
        elif code == TemporaryError.code and claim.record.attempts < ATTEMPTS:
            claim.postpone(code)
            pause = duration_text(claim.record.pause_seconds)
            say(f"{claim.name}: a temporary failure, see {claim.output / LOG}; again in {pause}", task=claim.name)
        elif code == DeviceError.code and not sees_device(self._options.device):
            claim.stop(code)  # the fault is the machine's: the task may run on another one
            raise no_gpu()
        else:
            self._end(claim, code)

    def _end(self, claim: Claim, code: int, reason: str | None = None) -> None:
        claim.end(code, reason)
        self._status.count("failed" if code else "done")
        self._status.set("idle")
        how = f"failed with code {code}{'' if reason is None else f', {reason}'}, see" if code else "done,"
        say(f"{claim.name}: {how} {claim.output / LOG if code else claim.output}", task=claim.name, code=code)


def sees_device(device: str) -> bool:
    """Return whether a GPU is visible, where one is needed.

    Another process asks the driver: one that has asked could not use CUDA in children that it forks.
    """
    if device != "cuda":
        return True
    question = "from engine.core.process.gpus import num_gpus; raise SystemExit(0 if num_gpus() else 1)"
    return subprocess.run([sys.executable, "-c", question], check=False).returncode == 0


def _send(child: Child, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signum)


@contextlib.contextmanager
def _ending(child: Child) -> Iterator[Child]:
    """End the child if the block fails: the worker must not leave a task running."""
    try:
        yield child
    except BaseException:
        _send(child, signal.SIGTERM)
        try:
            child.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _send(child, signal.SIGKILL)
        raise


def _preparing(log: Path) -> Callable[[], None]:
    """Return what a child does first: end when its worker ends, read nothing, and write its log to a file."""
    worker = os.getpid()

    def prepare() -> None:
        die_with_parent()
        if os.getppid() != worker:  # it died before this one could ask to die with it
            os._exit(exit_code(-signal.SIGKILL))
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        descriptor = atomic_files.open_log(log, owner=log.parent)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    return prepare


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="entrypoint.py worker",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--tasks", required=True, type=Path, metavar="DIR", help="where task files appear")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the results go, by name")
    parser.add_argument("--name", default=host.name(), help="of this worker, in TASKS/workers [the machine's name]")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS", help="of each start of a task")
    parser.add_argument("--exit-when-empty", action="store_true", help="end with 0 when no task is left")
    parser.add_argument("flags", nargs="*", help="more flags for the training, after --")
    return parser.parse_args(argv)


def _settings(flags: list[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings that all tasks share: a mistake in them would fail every task.

    Raises:
        TaskError: a wrong flag or variable, or one that each task has for itself.
    """
    parsed = flag_parser().parse_args(flags)
    if parsed.task is not None or parsed.output_dir is not None or parsed.plan:
        raise TaskError("--task, --output-dir and --plan cannot follow --: the worker sets the first two for each task")
    settings = read_settings(parsed, {**environment, "TASK_JSON": "{}"})
    if settings.checkpoint is not None:
        raise TaskError("--checkpoint and CHECKPOINT_DIR would be every task's: write the key checkpoint into the task")
    if settings.place.world_size > 1:
        raise TaskError("a worker is one process, not torchrun's: each task starts a process for each GPU itself")
    return settings


@contextlib.contextmanager
def _registered(folder: Path, name: str) -> Iterator[None]:
    """Hold the name of a worker, by a lock on its folder. Raises TemporaryError if another worker has it."""
    with contextlib.ExitStack() as stack:
        try:
            with atomic_files.writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(folder_lock.held(folder, stays=lambda: True))
        except TemporaryError:
            raise TemporaryError(
                f"another worker of these tasks is called {name}; give this one another name with --name"
            ) from None
        yield


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run tasks until a signal comes. Return 0 if no task is left; tasks that have failed do not count."""
    args = _parse(argv)
    if not _NAME.fullmatch(args.name):
        raise TaskError(f"--name is {args.name!r}: expected at most 100 letters, digits, dots, hyphens and underscores")
    if not args.time_limit > 0:
        raise TaskError("--time-limit must be more than 0 seconds")
    settings = _settings(args.flags, environment)
    tasks = TaskFolder(args.tasks.absolute(), args.output.absolute())
    require_mount(tasks.output, environment)
    tasks.prepare()
    if not sees_device(settings.device):
        raise no_gpu()
    folder = tasks.root / "workers" / args.name
    with _registered(folder, args.name):
        status = Status(folder, args.name)
        try:
            preload()
            say(f"worker {args.name}: takes tasks from {tasks.root}, results go to {tasks.output}")
            options = Options(
                flags=args.flags,
                device=settings.device,
                time_limit=args.time_limit,
                exits_when_empty=args.exit_when_empty,
            )
            Worker(args.name, tasks, status, options).run()
        finally:
            status.set("ended")
    return 0
