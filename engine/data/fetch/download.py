"""Download one URL into one file: every hop checked, bounded in size and time, resumed if the server allows it."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3.exceptions

from engine.core.errors import OutputError, TemporaryError
from engine.core.files.atomic_files import FILE_MODE, write_file, writing_to
from engine.core.limits import Limits
from engine.core.messages import Say
from engine.core.redact import shown_url
from engine.data.fetch.http_hops import Hops, Policy, TransientError, Watchdog, innermost
from engine.data.fetch.responses import check_status, display_name, length_of, range_of, validator_of

__all__ = ["Download", "Policy"]

_CHUNK_BYTES: Final = 256 << 10
_PROGRESS_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Meta:
    """The version of the remote file that a partial file belongs to."""

    validator: str | None = None
    """The ETag or modification date for `If-Range`; None if the server gives no strong one."""
    total: int | None = None
    """The whole file's size in bytes; None if the server does not say."""
    url: str | None = None
    """The URL that answered, without login, query and fragment; None before the first answer."""


def _place(url: str) -> str:
    """Return a URL without what may be secret in it: login, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Patience:
    """Decides how long to wait after each failure of a request, and when to give up."""

    def __init__(self, policy: Policy, report: Say) -> None:
        self._policy = policy
        self._report = report
        self.reset()

    def reset(self) -> None:
        """Forget the failures so far: there was progress."""
        self._failures = 0
        self._since = self._policy.clock()

    def wait_after(self, trouble: TransientError, what: str) -> None:
        """Back off, so that the promised attempts fit into the promised time.

        Raises:
            TemporaryError: no progress for `policy.give_up_seconds` or `max_attempts`; `what` is its subject.
        """
        policy = self._policy
        self._failures += 1
        left = policy.give_up_seconds - (policy.clock() - self._since)
        delay = max(policy.first_delay * 2 ** (self._failures - 1), trouble.retry_after)
        promised = policy.min_attempts - self._failures
        if promised > 0:
            delay = min(delay, max(0.0, left - promised * policy.stall_seconds) / promised)
        elif self._failures >= policy.max_attempts or delay + policy.stall_seconds > left:
            raise TemporaryError(
                f"{what} could not be downloaded in {self._failures} attempts: {trouble}; try again later"
            )
        self._report(f"{trouble}; trying again in {delay:.0f} s")
        policy.sleep(delay)


class Download:
    """A download. `part` holds the first bytes, `part` + `.json` their version. One process at a time."""

    def __init__(
        self, url: str, part: Path, *, limits: Limits, policy: Policy, report: Say, progress: Say | None = None
    ) -> None:
        """`progress` takes the lines on what has been fetched, `report` all others; by default also those."""
        self.url = url
        self.part = part
        self._meta_file = part.with_name(f"{part.name}.json")
        self._limits = limits
        self._policy = policy
        self._progress = progress or report
        self._best = 0
        self._patience = Patience(policy, lambda line: report(f"download: {line}"))
        self._reported: float | None = None
        self._reported_size = 0
        self._name = ""

    def run(self) -> None:
        """Fetch until `part` is the whole file.

        Raises:
            DatasetError: the server refuses, the address is not allowed, or the file is too large.
            TemporaryError: no progress for `policy.give_up_seconds` or `max_attempts`.
            OutputError: the file system refuses.
        """
        meta = self._read_meta()
        self._best = self._size()
        while meta.total is None or self._size() != meta.total:
            try:
                self._attempt(meta)
                self._progress(f"downloaded {self._name}: {self._size() / 1e6:,.1f} MB")
                break
            except TransientError as trouble:
                self._patience.wait_after(trouble, shown_url(self.url))
            meta = self._read_meta()
        if self._size() > self._limits.max_dataset_bytes:
            raise self._limits.too_large("its file")

    def discard(self) -> None:
        """Remove what has been fetched."""
        self.part.unlink(missing_ok=True)
        self._meta_file.unlink(missing_ok=True)

    @property
    def redirected_to(self) -> str | None:
        """The URL that the file came from, without login, query and fragment; None if that is the URL asked for."""
        found = self._read_meta().url
        return None if found == _place(self.url) else found

    @property
    def validator(self) -> str | None:
        """The value for `If-Range` of the version that was fetched; None if the server gives no strong one."""
        return self._read_meta().validator

    def _attempt(self, meta: _Meta) -> None:
        with Watchdog(self._policy) as watchdog:
            try:
                self._transfer(meta, watchdog)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise TransientError(watchdog.reason or innermost(error)) from error
            if watchdog.reason:
                # Where only the end of the connection ends the body, a stall looks like its end.
                raise TransientError(watchdog.reason)

    def _transfer(self, meta: _Meta, watchdog: Watchdog) -> None:
        size = self._size()
        resumable = size > 0 and meta.validator is not None
        headers = {"Range": f"bytes={size}-", "If-Range": meta.validator or ""} if resumable else {}
        with Hops(self._limits, self._policy, watchdog) as hops, hops.get(self.url, headers) as response:
            if response.status_code == 416 and resumable:
                self.discard()
                raise TransientError("the server cannot resume")
            check_status(response)
            self._name = display_name(response)
            if response.status_code == 206:
                total = self._check_range(response, size if resumable else None, meta)
            else:
                total = length_of(response)
                self._begin(_Meta(validator_of(response), total, _place(response.url)))
            self._check_space(total)
            self._receive(response, watchdog, total)

    def _check_range(self, response: requests.Response, size: int | None, meta: _Meta) -> int | None:
        """Return the whole file's size if the response continues where `part` ends. Raises TransientError otherwise."""
        start, total = range_of(response)
        changed = meta.total is not None and total is not None and total != meta.total
        validator = validator_of(response)
        if size is None or start != size or changed or (validator is not None and validator != meta.validator):
            self.discard()
            raise TransientError("the server answered with another range or another file")
        return total if total is not None else meta.total

    def _begin(self, meta: _Meta) -> None:
        """Start from zero. The file is emptied first, so that old bytes never stand beside the new version."""
        with writing_to(self.part.parent):
            with self.part.open("wb") as file:
                os.fchmod(file.fileno(), FILE_MODE)
            write_file(self._meta_file, json.dumps(asdict(meta)).encode())

    def _check_space(self, total: int | None) -> None:
        if total is None:
            return
        if total > self._limits.max_dataset_bytes:
            raise self._limits.too_large(f"its file of {total:,} bytes")
        missing, free = total - self._size(), shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise OutputError(
                f"the cache {self.part.parent} has {free:,} bytes free, the download needs {missing:,}: "
                "free some space or name another cache folder (CACHE_DIR)"
            )

    def _receive(self, response: requests.Response, watchdog: Watchdog, total: int | None) -> None:
        size = self._size()
        with writing_to(self.part.parent):
            file = self.part.open("ab", buffering=0)
        with file:
            # As it was sent, whatever Content-Encoding says: the content decides what the file is.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                watchdog.feed(len(chunk))
                size += len(chunk)
                if size > self._limits.max_dataset_bytes:
                    raise self._limits.too_large("its file")
                with writing_to(self.part.parent):
                    file.write(chunk)
                self._note(size, total)
        if total is not None and size != total:
            raise TransientError(f"the server sent {size:,} of {total:,} bytes")

    def _note(self, size: int, total: int | None) -> None:
        """Note progress: reset the count of failures, and report now and then."""
        now = self._policy.clock()
        if size >= self._best + _PROGRESS_BYTES:
            self._best = size
            self._patience.reset()
        if self._reported is not None and now - self._reported < self._policy.report_seconds:
            return
        if self._reported is not None:
            rate = (size - self._reported_size) / (now - self._reported) / 1e6
            whole = f" of {total / 1e6:,.1f}" if total is not None else ""
            self._progress(f"downloading {self._name}: {size / 1e6:,.1f}{whole} MB, {rate:.1f} MB/s")
        self._reported, self._reported_size = now, size

    def _size(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def _read_meta(self) -> _Meta:
        with suppress(OSError, ValueError, TypeError):
            return _Meta(**json.loads(self._meta_file.read_bytes()))
        return _Meta()
