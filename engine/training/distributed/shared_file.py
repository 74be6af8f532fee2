"""Read a file of the first process in all processes of a job. No torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.results.safetensors_file.reading import Reader, open_file
from engine.training.distributed.processes import Processes


class SharedFile:
    """A file that the first process has; see `Reader`. All processes must read the same numbers of bytes."""

    def __init__(self, processes: Processes, file: Reader | None, size: int) -> None:
        self._processes = processes
        self._file = file
        self.size = size

    def readinto(self, buffer: memoryview, /) -> int:
        """See `Reader.readinto`."""
        count = self._processes.broadcast_into(buffer, self._fill)
        if count < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return count

    def _fill(self, buffer: memoryview) -> int:
        assert self._file is not None, "it is open in the first process"
        try:
            return self._file.readinto(buffer)
        except OSError:
            return -1


@contextmanager
def open_shared(processes: Processes, path: Path) -> Iterator[SharedFile]:
    """Open a file of the first process for reading in all processes, which call this together.

    Raises:
        OSError: the first process cannot open it.
    """
    with ExitStack() as stack:
        file = None
        if processes.is_first:
            try:
                file = stack.enter_context(open_file(path))
            except OSError:
                file = None
        size = processes.broadcast(lambda: file.size if file else -1)
        if size < 0:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield SharedFile(processes, file, size)
