"""The folder of a worker's tasks: which task is due, which worker has claimed it, and how it ended.

A task is a file `NAME.json` in the folder. It stays there until it has ended, and is then moved to `done/` or
`failed/`. A claim is a lock on a file in the task's output folder, which the kernel releases when its holder dies.
Nothing that a stranger wrote is read here: a task's file is listed and moved, never opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from engine.core.console import say, timestamp
from engine.core.errors import OutputError, TaskError
from engine.core.files import atomic_files
from engine.core.files.file_lock import try_lock
from engine.core.messages import shown

ATTEMPTS: Final = 6
"""Maximum number of starts of a task that ends with a temporary failure, or whose worker dies while it runs."""
PAUSE_SECONDS: Final = 10.0
"""The pause after the first temporary failure. Each further one is twice as long."""
DONE: Final = "done"
FAILED: Final = "failed"
RECORD: Final = "worker.json"
"""The file in a task's output folder that says what its workers did."""
_LOCK: Final = ".worker.lock"
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json")
_MAX_RECORD_BYTES: Final = 1 << 16

State = Literal["running", "waiting", "stopped", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The contents of `worker.json`."""

    state: State = "stopped"
    code: int | None = None
    """The exit code of the last start that ended; 143 and the like where a signal stopped or killed the task."""
    reason: str | None = None
    """The cause of a failure, where the exit code does not say it."""
    attempts: int = 0
    """The number of starts, without those that were stopped together with the worker."""
    worker: str = ""
    started: str | None = None
    ended: str | None = None
    again_at: float | None = None
    """Seconds since 1970 at which a task in the state `waiting` is due again."""

    @property
    def pause_seconds(self) -> float:
        """The pause after the latest attempt."""
        return float(PAUSE_SECONDS * 2 ** (self.attempts - 1))

    @property
    def is_due(self) -> bool:
        """False while the pause after a temporary failure lasts. A clock that was set back does not prolong it."""
        return self.again_at is None or not 0 < self.again_at - time.time() <= self.pause_seconds


@dataclass(slots=True, kw_only=True)
class Claim:
    """A task that this worker alone may run, until the claim is closed."""

    file: Path
    output: Path
    """The task's output folder."""
    record: Record
    status: os.stat_result
    """The status of the task's file when it was claimed."""
    descriptor: int
    """The descriptor of the locked file. A forked child has it, too: the lock holds until both are closed."""

    @property
    def name(self) -> str:
        """The task's name: its file's, without `.json`."""
        return self.file.stem

    def begin(self, worker: str) -> None:
        """Record that the task is about to be started."""
        self._write(Record(state="running", attempts=self.record.attempts + 1, worker=worker, started=timestamp()))

    def stop(self, code: int) -> None:
        """Record that the task was stopped together with its worker. It is due at once, and this was no attempt."""
        self._write(
            replace(self.record, state="stopped", code=code, attempts=self.record.attempts - 1, ended=timestamp())
        )

    def postpone(self, code: int) -> None:
        """Record a temporary failure, after which the task is due again when a pause is over."""
        again_at = time.time() + self.record.pause_seconds
        self._write(replace(self.record, state="waiting", code=code, ended=timestamp(), again_at=again_at))

    def end(self, code: int, reason: str | None = None) -> None:
        """Record that the task has ended, and move its file to `done/` or `failed/`.

        A file that was put in its place meanwhile is left there: it is another task.
        """
        state: State = "done" if code == 0 else "failed"
        self._write(replace(self.record, state=state, code=code, reason=reason, ended=timestamp()))
        with atomic_files.writing_to(self.file.parent), contextlib.suppress(FileNotFoundError):
            if _is_same(self.file.lstat(), self.status):
                self.file.replace(self.file.parent / state / self.file.name)

    def close(self) -> None:
        """Let other workers claim the task."""
        os.close(self.descriptor)

    def _write(self, record: Record) -> None:
        self.record = record
        with atomic_files.writing_to(self.output):
            atomic_files.write_file(self.output / RECORD, _json_bytes(asdict(record)), owner=self.output)


@dataclass(slots=True)
class TaskFolder:
    """The folder of tasks, which several workers may share, and the folder of their results."""

    root: Path
    output: Path
    num_later: int = field(default=0, init=False)
    """The number of tasks that `claim` found in the pause after a temporary failure."""
    _left: set[str] = field(default_factory=set, init=False)
    """Names of files that cannot be taken, each of which has been reported."""

    def prepare(self) -> None:
        """Create the folders for tasks that have ended.

        Raises:
            TaskError: there is no such folder of tasks, or it is the folder of results, too.
            OutputError: nothing can be written to one of the two folders.
        """
        if not self.root.is_dir():
            raise TaskError(f"--tasks {self.root}: there is no such folder; create it, or mount it")
        if self.output.resolve() == self.root.resolve():
            raise TaskError("--output must be another folder than --tasks, for example a folder in it")
        for folder in (self.output, self.root / DONE, self.root / FAILED):
            with atomic_files.writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def claim(self) -> Claim | None:
        """Claim the oldest task that is due and that no other worker has claimed; None if there is none.

        Raises:
            OutputError: one of the two folders cannot be read or written.
        """
        self.num_later = 0
        for path in self._files():
            claim = self._claim(path)
            if claim is None:
                continue
            if claim.record.is_due:
                return claim
            claim.close()
            self.num_later += 1
        return None

    def _files(self) -> list[Path]:
        """Return the tasks' files, the oldest first. Links, and names that a task cannot have, are left out."""
        found = []
        with atomic_files.writing_to(self.root), os.scandir(self.root) as entries:
            for entry in entries:
                if not entry.name.endswith(".json") or entry.name.startswith("."):
                    continue
                if not _FILE.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    self._leave(entry.name, "expected a plain file NAME.json; NAME: 1 to 100 of A-Z a-z 0-9 . _ -")
                    continue
                with contextlib.suppress(FileNotFoundError):  # another worker has just moved it
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        return [self.root / name for _, name in sorted(found)]

    def _claim(self, path: Path) -> Claim | None:
        try:
            return _try_to_claim(path, self.output / path.stem)
        except OutputError as error:
            if not os.access(self.output, os.W_OK | os.X_OK):
                raise
            self._leave(path.name, str(error))  # others can be written
            return None

    def _leave(self, name: str, reason: str) -> None:
        if name not in self._left:
            self._left.add(name)
            say(f"{shown(name)} is not taken: {reason}", level="warning")


def _try_to_claim(path: Path, output: Path) -> Claim | None:
    """Claim a task; None if another worker has claimed or just ended it. Raises OutputError."""
    with atomic_files.writing_to(output), contextlib.ExitStack() as stack:
        if not output.is_dir():
            output.mkdir(exist_ok=True)
            output.chmod(atomic_files.FOLDER_MODE)
        descriptor = atomic_files.open_lock(output / _LOCK, owner=output)
        stack.callback(os.close, descriptor)
        # Whoever held the lock before may have moved the file.
        if not try_lock(descriptor) or (status := _file_status(path)) is None:
            return None
        stack.pop_all()
    return Claim(file=path, output=output, record=_read_record(output / RECORD), status=status, descriptor=descriptor)


def _read_record(path: Path) -> Record:
    """Return what an unfinished task's workers recorded; a new record for a task that is new or has ended before."""
    try:
        found = Record(**json.loads(atomic_files.read_plain(path, _MAX_RECORD_BYTES) or b"{}"))
    except (OSError, ValueError, TypeError, RecursionError):
        return Record()
    is_valid = type(found.attempts) is int and isinstance(found.again_at, float | None)
    return found if is_valid and found.state not in (DONE, FAILED) else Record()


def _file_status(path: Path) -> os.stat_result | None:
    """Return the status of a plain file; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (other.st_ino, other.st_size, other.st_mtime_ns)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
