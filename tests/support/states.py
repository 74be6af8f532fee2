"""Training states as bytes in memory, for tests that compare them and carry them from run to run."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

from engine.core.files.atomic_files import Stored
from engine.results.state import read_state, state_files


class BytesReader:
    """A file in memory, which gives at most `most` bytes at once."""

    def __init__(self, data, most=1 << 20):
        self._data, self._most = memoryview(data), most
        self.size = len(data)

    def readinto(self, buffer):
        part = self._data[: min(len(buffer), self._most)]
        buffer[: len(part)] = part
        self._data = self._data[len(part) :]
        return len(part)


def dump_state(state):
    """The bytes of `state.safetensors`, and the scalars."""
    files, scalars = state_files(state)
    (pieces,) = files.values()
    return b"".join(pieces()), scalars


def parse_state(data, scalars):
    """The inverse of `dump_state`."""

    @contextmanager
    def opening(path):
        yield BytesReader(data)

    file = Stored(Path("state.safetensors"), hashlib.sha256(data).hexdigest())
    return read_state({file.path.name: file}, scalars, opening)
