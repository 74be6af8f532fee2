"""Make errors on standard streams harmless."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def keep_streams() -> None:
    """Keep the program running, with its own exit code, if a standard stream is closed, full or no longer read.

    Output is lost then. A closed descriptor is opened on /dev/null: else the next file that is opened would get its
    number, and with it whatever a library writes to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _unbreakable(sys.stdout, 1)
    sys.stderr = _unbreakable(sys.stderr, 2)


class _Unbreakable(io.FileIO):
    """A descriptor whose write errors are ignored."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written  # None: a pipe that must not block is full


def _unbreakable(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """A text stream on `descriptor` with the encoding and buffering of `stream`, which may be None."""
    with contextlib.suppress(OSError):
        if stream is not None:
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbreakable(descriptor, "w", closefd=False)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "backslashreplace"),
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )
