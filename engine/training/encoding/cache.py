"""The cache of encodings on disk, shared by visits, epochs, tasks and jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core.canonical_json import canonical_json
from engine.core.files import atomic_files
from engine.core.files.retention import cached_files
from engine.models.family import Tensors


def cache_key(kind: str, *what: object) -> str:
    """Return the key of an encoding. It includes the kind, so a caption's key never equals an image's."""
    return hashlib.sha256(canonical_json([kind, *what])).hexdigest()


class EncodingCache:
    """Tensors by key, in small sealed files in one folder, which any number of jobs may share.

    Failures to write are ignored: they only make a later job encode again.

    `namespace` holds everything besides the key that the bits depend on: encoder, dtype, device, library versions.
    """

    def __init__(self, cache_dir: Path, namespace: Mapping[str, Any], *, max_bytes: int) -> None:
        self._root = cache_dir / "encoded"
        self._folder = self._root / hashlib.sha256(canonical_json(dict(namespace))).hexdigest()[:32]
        self.max_bytes = max_bytes
        self.is_writable = max_bytes > 0
        """False once something could not be stored."""
        self._stored_bytes = 0
        """Bytes stored since `trim` last examined the cache."""
        self._room: int | None = None
        """Bytes that were free then; None before the first time."""

    def load(self, key: str) -> Tensors | None:
        """Return the tensors stored under `key` (a hex digest); None if they are missing or damaged."""
        if not self.max_bytes:
            return None
        path = self._path(key)
        try:
            payload = atomic_files.unseal(path.read_bytes())
            tensors = None if payload is None else parse_tensors(payload)
        except (OSError, SafetensorError):
            return None
        if tensors is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `trim` removes the least recently used files
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def store(self, key: str, tensors: Tensors) -> None:
        """Store the tensors under `key`. Nothing happens if that fails, or if nothing can be written."""
        if not self.is_writable:
            return
        sealed = atomic_files.seal(serialise_tensors({name: t.contiguous() for name, t in tensors.items()}))
        if atomic_files.write_cached(self._path(key), sealed):
            self._stored_bytes += len(sealed)
        else:
            self.is_writable = False  # avoids thousands of failures, one for each image

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def trim(self) -> None:
        """Remove the least recently used files until all jobs' encodings together take at most the allowed bytes.

        Examining hundreds of thousands of files takes seconds. So it is done only after this job has stored something,
        and again only after it has filled the space that was free then, and `1 / _SLACK` of the allowed bytes more.
        """
        if not self._stored_bytes:
            return
        if self._room is not None and self._stored_bytes <= self._room + self.max_bytes // _SLACK:
            return
        entries = sorted(cached_files(self._root))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
                total -= size
        self._stored_bytes, self._room = 0, max(0, self.max_bytes - total)


_SLACK: Final = 64
"""Divisor of the allowed bytes: a job may exceed them by this share before `trim` examines the cache again."""
