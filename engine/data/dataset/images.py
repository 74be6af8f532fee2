"""The encoded images of rows: in a column, in files of their own, or in a tar."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.files.folder_names import label_of
from engine.core.files.stat_cache import Identity
from engine.core.messages import shown
from engine.data.dataset.reach import Reach, Take, hash_regular, read_below, read_regular, take_below, unreadable
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium
from engine.task.paths import as_spelled

MAX_IMAGE_FILE_BYTES: Final = 1 << 30
DIGEST_BYTES: Final = hashlib.sha256().digest_size
UNREADABLE: Final = b"\xff" * DIGEST_BYTES
"""Stands in place of the SHA-256 of an image that cannot be read."""
_DIGEST: Final = np.dtype((np.void, DIGEST_BYTES))


def images_among(files: Iterable[str], medium: Medium) -> list[str]:
    """Return the samples of a medium among relative paths, without OneTrainer's labels (`-masklabel`, `-condlabel`)."""
    return [file for file in files if medium.has_name(file) and label_of(file) is None]


class Images(Protocol):
    """The encoded images of some rows, or other samples of their medium, such as clips."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes.

        Raises:
            UnreadableImage: there is no image, or it cannot be read.
            TemporaryError: reading fails for a reason that may pass.
            DatasetError: the row names a file that it must not name.
        """
        ...

    def digest(self, index: int) -> bytes:
        """Return the SHA-256 of the encoded bytes, of a file without holding all of it. Raises the errors of `read`."""
        ...

    def has(self, index: int) -> bool:
        """Return whether the row names or holds an image."""
        ...

    def name(self, index: int) -> str:
        """Return the image's name for messages: the file's name if the row has one."""
        ...

    def identify(self, identity: Identity) -> None:
        """Add to an identity everything that the results of `read` depend on."""
        ...

    def known_digests(self) -> memoryview | None:
        """Return the SHA-256 of all images if they are known without reading them, one after the other.

        That of an image which `read` refuses as unreadable is `UNREADABLE`.
        """
        ...

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Prepare the reading of images that are read next; where reading is fast, do nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """The files that a column is memory-mapped from, in order; they hold nothing but its table."""

    files: tuple[Path, ...]
    column: str


@dataclass(frozen=True, slots=True)
class Cells:
    """An Arrow column of encoded bytes, of paths, or of both ({bytes, path}, as 🤗 datasets stores images)."""

    payloads: pa.ChunkedArray | None
    paths: pa.ChunkedArray | None
    length: int
    folder: Path
    reach: Reach
    label: str
    origin: Origin | None = None
    """The origin of `payloads`; None if it is not known."""

    def __len__(self) -> int:
        return self.length

    def has(self, index: int) -> bool:
        return self._path(index) is not None or (self.payloads is not None and self.payloads[index].is_valid)

    def read(self, index: int) -> bytes | memoryview:
        payload = self._payload(index)
        return self._take(index, read_regular) if payload is None else payload

    def digest(self, index: int) -> bytes:
        payload = self._payload(index)
        return self._take(index, hash_regular) if payload is None else hashlib.sha256(payload).digest()

    def _payload(self, index: int) -> memoryview | None:
        """Return the bytes in the row itself; None if it has none."""
        payload = None if self.payloads is None else self.payloads[index]
        return memoryview(payload.as_buffer()) if payload is not None and payload.is_valid else None

    def _take(self, index: int, take: Take) -> bytes:
        """Return what `take` returns for the file that the row names. Raises the errors of `read`."""
        value = self._path(index)
        if value is None:
            raise UnreadableImage("the row has no image")
        where = f"row {index} of {self.label}"
        if self.reach.zipped and value.startswith("zip://"):
            data = self._read_zipped(value, where)
            return data if take is read_regular else hashlib.sha256(data).digest()
        self.reach.check(value, where)
        path = self._file_of(value)
        try:
            self.reach.check_resolved(path, value, where)
            return take(path, MAX_IMAGE_FILE_BYTES)
        except ValueError as error:  # a NUL in the name
            raise UnreadableImage(str(error)) from error
        except OSError as error:
            raise unreadable(error, where) from error

    def name(self, index: int) -> str:
        value = self._path(index)
        return shown(value) if value else f"row {index} of {self.label}"

    def files(self) -> Iterator[str]:
        """Yield the paths of the rows that hold no bytes, as they are written in the rows."""
        for row, value in enumerate([] if self.paths is None else self.paths.to_pylist()):
            if value and (self.payloads is None or not self.payloads[row].is_valid):
                yield value

    def identify(self, identity: Identity) -> None:
        identity.add(repr((str(self.folder), self.reach)).encode())
        if self.payloads is not None:
            if self.origin is None:
                identity.give_up()
                return
            identity.add(self.origin.column.encode("utf-8", "surrogatepass"))
            identity.add_files(self.origin.files)
        if self.paths is not None:
            identity.add_column(self.paths)
            rows = range(self.length)
            if self.payloads is not None:
                rows = pc.indices_nonzero(self.payloads.is_null()).to_pylist()
            # Row by row: Arrow cannot filter string views.
            identity.add_files(self._file_of(value) for row in rows if (value := self._path(row)) is not None)

    def known_digests(self) -> None:
        """Return None: they are not known."""

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Do nothing: the system reads local files ahead."""

    def _file_of(self, value: str) -> str:
        """Return the file to read for a path; for `zip://`, the archive."""
        if self.reach.zipped and value.startswith("zip://"):
            return value.partition("::")[2]
        return as_spelled(f"{self.folder}/{value}" if value[:1] != "/" else value)

    def _path(self, index: int) -> str | None:
        value: str | None = None if self.paths is None else self.paths[index].as_py()
        return value

    def _read_zipped(self, value: str, where: str) -> bytes:
        member, _, archive = value.removeprefix("zip://").partition("::")
        self.reach.check(archive, where)
        self.reach.check_resolved(archive, archive, where)
        try:
            opened = _open_zip(archive)
            if opened.getinfo(member).file_size > MAX_IMAGE_FILE_BYTES:
                raise UnreadableImage(f"it is larger than {MAX_IMAGE_FILE_BYTES:,} bytes")
            return opened.read(member)
        except OSError as error:
            raise unreadable(error, where) from error
        except (KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise UnreadableImage(f"it cannot be extracted from its archive ({error})") from error


@lru_cache(maxsize=8)
def _open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True, slots=True)
class Files:
    """Image files below a folder, by their relative paths; an empty path means that the row has no image."""

    folder: Path
    paths: Sequence[str]
    reach: Reach

    def __len__(self) -> int:
        return len(self.paths)

    def has(self, index: int) -> bool:
        return bool(self.paths[index])

    def read(self, index: int) -> bytes:
        return read_below(self.folder, self.paths[index], self.reach, MAX_IMAGE_FILE_BYTES)

    def digest(self, index: int) -> bytes:
        return take_below(self.folder, self.paths[index], self.reach, MAX_IMAGE_FILE_BYTES, hash_regular)

    def name(self, index: int) -> str:
        return shown(self.paths[index])

    def identify(self, identity: Identity) -> None:
        identity.add(repr((str(self.folder), self.reach)).encode(), *map(os.fsencode, self.paths))
        identity.add_files(f"{self.folder}/{path}" for path in self.paths if path)

    def known_digests(self) -> None:
        """Return None: they are not known."""

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Do nothing: the system reads local files ahead."""


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection of other images, by their indices."""

    images: Images
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, index: int) -> bool:
        return self.images.has(int(self.rows[index]))

    def read(self, index: int) -> bytes | memoryview:
        return self.images.read(int(self.rows[index]))

    def digest(self, index: int) -> bytes:
        return self.images.digest(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def identify(self, identity: Identity) -> None:
        identity.add(self.rows.tobytes())
        self.images.identify(identity)

    def known_digests(self) -> memoryview | None:
        known = self.images.known_digests()
        return None if known is None else memoryview(np.frombuffer(known, _DIGEST)[self.rows].tobytes())

    def read_ahead(self, rows: Sequence[int]) -> None:
        self.images.read_ahead(self.rows[rows].tolist())
