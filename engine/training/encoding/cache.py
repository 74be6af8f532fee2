"""The cache of encodings on disk, for later visits, epochs, tasks and jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core.canonical_json import canonical_json
from engine.core.files import atomic_files
from engine.core.files.retention import cached_files

Tensors = dict[str, torch.Tensor]


def cache_key(kind: str, *what: object) -> str:
    """Return the key of what is encoded. It says of what kind it is: a caption may be spelled like an image's key."""
    return hashlib.sha256(canonical_json([kind, *what])).hexdigest()


class EncodingCache:
    """Tensors by key, in small sealed files under one folder that any number of jobs may share.

    Failures to write are ignored: they only cost a later job the time to encode again.

    `namespace` holds everything besides the key that the bits depend on: encoder, dtype, device, library versions.
    """

    def __init__(self, cache_dir: Path, namespace: Mapping[str, Any], *, max_bytes: int) -> None:
        self._root = cache_dir / "encoded"
        self._folder = self._root / hashlib.sha256(canonical_json(dict(namespace))).hexdigest()[:32]
        self._max_bytes = max_bytes
        self._is_writable = max_bytes > 0
        self._stored_bytes = 0
        """Bytes stored since `trim` last looked."""
        self._room: int | None = None
        """Bytes that `trim` then found free; None before its first look."""

    def load(self, key: str) -> Tensors | None:
        """Return the tensors stored under `key` (a hex digest); None where they are missing or damaged."""
        if not self._max_bytes:
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
            os.utime(path)  # used now: `trim` removes what was not used for longest
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def store(self, key: str, tensors: Tensors) -> None:
        """Store the tensors under `key`, unless the disk is full, read-only or broken."""
        if not self._is_writable:
            return
        sealed = atomic_files.seal(serialise_tensors({name: t.contiguous() for name, t in tensors.items()}))
        if atomic_files.write_cached(self._path(key), sealed):
            self._stored_bytes += len(sealed)
        else:
            self._is_writable = False  # it would fail again for each of thousands of images

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def trim(self) -> None:
        """Remove the files used least recently until all jobs' encodings together take at most the allowed bytes.

        Looking through hundreds of thousands of files takes seconds, so that is done only when this job has stored
        something, and again when it has filled the room that it found then, and a little more than that.
        """
        if not self._stored_bytes:
            return
        if self._room is not None and self._stored_bytes <= self._room + self._max_bytes // _SLACK:
            return
        entries = sorted(cached_files(self._root))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self._max_bytes:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
                total -= size
        self._stored_bytes, self._room = 0, max(0, self._max_bytes - total)


_SLACK: Final = 64
"""One job may exceed the allowed bytes by 1 / _SLACK of them before `trim` looks again."""
