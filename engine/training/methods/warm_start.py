"""Find weights without training state, made by any trainer, from which a training can start. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import CheckpointError
from engine.results import checkpoint
from engine.results.checkpoint import reading


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Weights without training state, from which a training starts. The files stay on disk, since they may be large."""

    folder: Path
    digest: str
    """The SHA-256 of all files' contents, one after the other."""
    hashes: Mapping[str, str]
    """The SHA-256 of each file, by its name in the folder; the main one first."""

    @property
    def name(self) -> str:
        """The name of the main file."""
        return next(iter(self.hashes))

    def content(self, name: str) -> bytes:
        """Return one of the files. Raises CheckpointError if it has changed since it was found, or cannot be read."""
        path = self.folder / name
        try:
            data = reading.read_plain_file(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
        self._require(name, hashlib.sha256(data).hexdigest())
        return data

    def require_unchanged(self, component: str) -> None:
        """Check the files in a component's folder after they were loaded. Raises the errors of `content`."""
        for name in self.hashes:
            if name.startswith(f"{component}/"):
                self._require(name, _sha256(self.folder / name, hashlib.sha256()))

    def _require(self, name: str, sha256: str) -> None:
        if sha256 != self.hashes[name]:
            raise CheckpointError(f"{self.folder / name} changed while the job was running; run the same command again")


def read(folder: Path, find: Callable[[Path, Set[str]], Sequence[str]], *, main_file: str) -> WarmStart:
    """Find the weights to start from in a folder, and hash them.

    Args:
        folder: a folder without a manifest.
        find: `MethodSpec.find_start`.
        main_file: `MethodSpec.main_file`.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    names = reading.names_in(folder)
    reading.require_no_remains(folder, names)
    inner = folder / "checkpoint"
    if _holds_start(inner, find):  # an output folder
        raise CheckpointError(
            f"{folder} holds no checkpoint ({checkpoint.MANIFEST}) and no weights to start from ({main_file}); "
            f"the checkpoint is in a folder below: use --checkpoint {inner}"
        )
    digest = hashlib.sha256()
    hashes = {name: _sha256(folder / name, digest) for name in find(folder, names)}
    return WarmStart(folder=folder, digest=digest.hexdigest(), hashes=hashes)


def _sha256(path: Path, digest: hashlib._Hash) -> str:
    """Return a file's SHA-256, and add its content to `digest`. Raises CheckpointError."""
    own = hashlib.sha256()
    try:
        for chunk in reading.plain_chunks(path):
            own.update(chunk)
            digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    return own.hexdigest()


def _holds_start(folder: Path, find: Callable[[Path, Set[str]], Sequence[str]]) -> bool:
    """Return whether a folder holds a checkpoint or weights to start from."""
    try:
        names = reading.names_in(folder)
        return checkpoint.MANIFEST in names or bool(find(folder, names))
    except CheckpointError:
        return False
