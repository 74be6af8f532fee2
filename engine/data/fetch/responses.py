"""Read an HTTP response's headers: status, name, size, range and identity of the file."""

from __future__ import annotations

import re
import time
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit

import requests

from engine.core.errors import DatasetError
from engine.core.redact import shown_url
from engine.data.fetch.http_hops import TransientError

_RETRIED: Final = frozenset({408, 425, 429})
_STRONG_AFTER_SECONDS: Final = 60
_ADVICE: Final = {
    401: "it needs a login; give a URL that anyone may read",
    403: "access is forbidden; a signed link may have expired",
    404: "there is nothing; check the URL",
    407: "the proxy wants a login; check HTTP_PROXY and HTTPS_PROXY",
    410: "it is gone; upload it again",
}


def check_status(response: requests.Response) -> None:
    """Accept 200 and 206. Raises TransientError for temporary failures, DatasetError for others."""
    status = response.status_code
    if status in (200, 206):
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise DatasetError(
                f"{shown_url(response.url)} is sent with Content-Encoding {encoding[:20]!a}, which was not requested; "
                "use a URL that serves the plain file"
            )
        return
    if status in _RETRIED or status >= 500:
        raise TransientError(f"the server answered {status}", _retry_after(response))
    advice = _ADVICE.get(status, "the server gives no file; check the URL")
    raise DatasetError(f"{shown_url(response.url)} answered {status}: {advice}")


def _retry_after(response: requests.Response) -> float:
    """Return the seconds that the server asks to wait; 0 if it does not."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def length_of(response: requests.Response) -> int | None:
    """Return the body's size in bytes; None if the server does not say."""
    value = response.headers.get("Content-Length", "")
    if "Transfer-Encoding" in response.headers or not re.fullmatch(r"[0-9]{1,18}", value):
        return None
    return int(value)


def range_of(response: requests.Response) -> tuple[int | None, int | None]:
    """Return a partial body's start and the whole file's size; None for each that is not given."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def validator_of(response: requests.Response) -> str | None:
    """Return the value for `If-Range`: a strong ETag, or a date that is strong by RFC 9110, section 8.8.2.2."""
    etag = response.headers.get("ETag", "").strip()
    if re.fullmatch(r'"[\x21\x23-\x7e]{1,500}"', etag):
        return etag
    modified = response.headers.get("Last-Modified", "")
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError, OverflowError):
        return None
    strong = not etag and age.total_seconds() >= _STRONG_AFTER_SECONDS
    return modified if strong and re.fullmatch(r"[\x20-\x7e]{1,60}", modified) else None


def display_name(response: requests.Response) -> str:
    """Return a name of the file for progress lines. It is never used as a path."""
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    try:
        name = message.get_filename() or ""
    except (ValueError, LookupError):
        name = ""
    name = name or unquote(urlsplit(response.url).path)
    name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return "".join(char for char in name if char.isprintable())[:80] or "the dataset"
