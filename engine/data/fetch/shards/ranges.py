"""Read a part of a remote file by an HTTP range request, with the checks and the patience of a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import requests
import urllib3.exceptions

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.core.messages import Say
from engine.core.redact import shown_url
from engine.data.fetch.download import Patience
from engine.data.fetch.http_hops import Hops, Policy, TransientError, Watchdog, innermost
from engine.data.fetch.responses import check_status, length_of, range_of

_CHUNK_BYTES: Final = 256 << 10
_EXPIRED: Final = (
    "; links that expire do not last for a training: give links that last longer, or raise MAX_CACHE_BYTES so that all "
    "shards stay in the cache"
)


class NoRangesError(Exception):
    """The server sends whole files only, or its file is another version than before."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A version of a file on a server."""

    url: str
    size: int
    validator: str | None
    """The value for `If-Range`: an ETag or a date; None if the server gave no strong one."""


@dataclass(frozen=True, slots=True)
class RangeReader:
    """Reads parts of remote files. Threads may share it."""

    limits: Limits
    policy: Policy
    report: Say

    def read(self, file: RemoteFile, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; both are inside the file.

        Raises:
            NoRangesError: the server does not send this part of this version of the file.
            DatasetError: the server refuses, or its address is not allowed.
            TemporaryError: the server or the network fails after all attempts.
        """
        patience = Patience(self.policy, lambda line: self.report(f"reading {shown_url(file.url)}: {line}"))
        while True:
            try:
                return self._attempt(file, offset, size)
            except TransientError as trouble:
                patience.wait_after(trouble, f"a part of {shown_url(file.url)}")

    def _attempt(self, file: RemoteFile, offset: int, size: int) -> bytes:
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        if file.validator is not None:
            headers["If-Range"] = file.validator
        with Watchdog(self.policy) as watchdog, Hops(self.limits, self.policy, watchdog) as hops:
            try:
                with hops.get(file.url, headers) as response:
                    _check(response, file, offset, size)
                    return _body(response, size, watchdog)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise TransientError(watchdog.reason or innermost(error)) from error


def _body(response: requests.Response, size: int, watchdog: Watchdog) -> bytes:
    """Return a response's body. Raises TransientError if it has another size."""
    data = bytearray()
    # One byte more than asked for is enough to see that the body is too long.
    while len(data) <= size and (
        chunk := response.raw.read1(min(_CHUNK_BYTES, size + 1 - len(data)), decode_content=False)
    ):
        watchdog.feed(len(chunk))
        data += chunk
    if len(data) != size:
        raise TransientError(watchdog.reason or f"the server sent {len(data):,} bytes instead of {size:,}")
    return bytes(data)


def _check(response: requests.Response, file: RemoteFile, offset: int, size: int) -> None:
    """Raise an error unless the response is the part that was asked for."""
    if response.status_code in (200, 416):
        raise NoRangesError
    try:
        check_status(response)
    except DatasetError as error:
        raise DatasetError(f"{error}{_EXPIRED if response.status_code in (401, 403) else ''}") from None
    start, total = range_of(response)
    if total is not None and total != file.size:
        raise NoRangesError
    if start != offset or length_of(response) not in (None, size):
        raise TransientError("the server answered with another range")
