"""The ways in which a job can fail, each with its exit code.

A user's mistake, a broken input and a machine's fault are typed errors with a one-line message that says what,
where and what to do. Anything else that escapes is a bug (exit 70) and shows its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class JobError(Exception):
    """A job ends for a known reason. `str(error)` is one line for a person."""

    code: int
    kind: str
    hub_id: str | None = None
    """The Hub ID that was not found, or could not be looked up because the Hub was unreachable; else None."""


class TaskError(JobError):
    """The task, a flag or an environment variable is invalid."""

    code = 2
    kind = "task"


class DatasetError(JobError):
    """The dataset: not found, no such column, unreadable, unsafe archive, no usable image."""

    code = 3
    kind = "dataset"

    def __init__(self, message: str, *, key: str | None = None) -> None:
        """`key` is the task's key that is wrong, where it is one: the message goes on after it."""
        super().__init__(message if key is None else f"{key} {message}")
        self.key = key


class ModelError(JobError):
    """The base model: not found, wrong kind, incomplete."""

    code = 4
    kind = "model"


class CheckpointError(JobError):
    """The checkpoint: missing, corrupt, made by something incompatible."""

    code = 5
    kind = "checkpoint"


class DeviceMemoryError(JobError):
    """Out of device memory."""

    code = 6
    kind = "memory"


class OutputError(JobError):
    """The output folder: not writable, disk full, another job's result in it."""

    code = 7
    kind = "output"


class NonFiniteError(JobError):
    """The loss, a gradient or an encoding became non-finite, or the fp16 loss scale fell below 1."""

    code = 8
    kind = "non-finite"


class DeviceError(JobError):
    """No device visible, or a precision that the device does not support."""

    code = 9
    kind = "device"


class TemporaryError(JobError):
    """Network, Hub or server trouble, a busy output folder, a killed helper process: a retry may succeed."""

    code = 75
    kind = "temporary"


class PeerError(JobError):
    """Another process of the same job ended. This error has that process's code, kind and message."""

    def __init__(self, code: int, kind: str, message: str, *, origin: int, was_killed: bool = False) -> None:
        """`origin` is the rank of the process that ended first; `was_killed` says that it ended without a reason."""
        super().__init__(message)
        self.code, self.kind, self.origin, self.was_killed = code, kind, origin, was_killed


class Interrupted(BaseException):
    """A signal stopped the job; the same command continues from the saved progress.

    Not an `Exception`, so that no library's broad `except` swallows it.
    """

    kind: ClassVar[str] = "interrupted"

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signum


class PeerInterrupted(Interrupted):
    """Another process of the same job was stopped by a signal, between two steps of this one."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, at most 300 characters; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


BUG_CODE = 70
