"""Bounds on untrusted datasets: bytes, files, compression ratio, memory, and where they may come from."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError
from engine.core.process.environment import flag_variable, int_variable

DEFAULT_MAX_BYTES: Final = 50 << 30
MAX_HEADER_BYTES: Final = 1 << 20
"""The largest header of one member of a tar."""
_MAX_DIGITS: Final = 100
_TAR_BLOCK: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one dataset.

    The ratio: images hardly compress and captions about tenfold, while bombs reach 1000 (deflate) to a million (bzip2,
    xz). So 200 times the packed size, beyond the first 64 MiB that even a tiny archive of flat test images may need.
    The number of files bounds memory (about 1 KB each while they are listed) and inodes.
    """

    max_dataset_bytes: int = DEFAULT_MAX_BYTES
    """Bytes, of the download and again of what it unpacks to."""
    allow_private_urls: bool = False
    max_cache_bytes: int | None = None
    """Bytes that the whole cache may hold; None for any number."""
    max_ratio: int = 200
    ratio_free_bytes: int = 64 << 20
    max_files: int = 1_000_000
    """Members of an archive, and the files and folders they make."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Limits:
        """Read MAX_DATASET_BYTES, ALLOW_PRIVATE_URLS and MAX_CACHE_BYTES; empty is not set.

        Raises:
            TaskError: one of them has another value; it is named.
        """
        name = "MAX_CACHE_BYTES"
        return cls(
            max_cache_bytes=int_variable(env, name, default=0, least=0) if env.get(name) else None,
            max_dataset_bytes=int_variable(env, "MAX_DATASET_BYTES", default=DEFAULT_MAX_BYTES, least=1),
            allow_private_urls=flag_variable(env, "ALLOW_PRIVATE_URLS"),
        )

    def too_large(self, what: str) -> DatasetError:
        """The refusal of more than `max_dataset_bytes`."""
        return DatasetError(
            f"{what} is larger than {self.max_dataset_bytes:,} bytes; use a smaller one or raise MAX_DATASET_BYTES"
        )


DEFAULT_LIMITS: Final = Limits()


def refuse_endless_number(header: bytes) -> None:
    """Refuse a tar header on which tarfile would take hours: its time is quadratic in a run of digits.

    This is CVE-2024-6232, fixed in Python 3.11.10 and 3.12.6. Raises DatasetError.
    """
    if len(header) > _TAR_BLOCK and max(map(len, re.findall(rb"[0-9]+", header)), default=0) > _MAX_DIGITS:
        raise DatasetError("it has a member with too long a run of digits in its headers; pack it again")


class Budget:
    """The bytes that an archive may still unpack to. Counts bytes as they are written, never what a header claims."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._limits = limits
        self._ratio_bound = limits.ratio_free_bytes + limits.max_ratio * packed_bytes
        self._spent = 0

    def spend(self, num_bytes: int) -> None:
        """Count unpacked bytes. Raises DatasetError if there are too many."""
        self._spent += num_bytes
        if self._spent > self._limits.max_dataset_bytes:
            raise self._limits.too_large("unpacked, it")
        if self._spent > self._ratio_bound:
            raise DatasetError(
                f"it unpacks to more than {self._limits.max_ratio} times its size (a decompression bomb); "
                "pack the images as they are"
            )


@contextlib.contextmanager
def bounded_memory(num_bytes: int) -> Iterator[None]:
    """Let allocations inside the block fail, as a MemoryError, beyond `num_bytes` more than there are now.

    An untrusted file decides how much its decoder allocates, and a system that runs out of memory kills a process
    instead of refusing the allocation. There is no bound if /proc does not say how much memory is in use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        bound = (int(found[1]) << 10) + num_bytes
        others = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([bound, *others]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
