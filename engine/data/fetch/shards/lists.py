"""Read a list of shards: a text file with one URL a line, or a JSON list. Lists are untrusted.

A list is cached in a folder of its own like other downloads, under the name `LIST_NAME`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from engine.core.errors import DatasetError
from engine.core.redact import shown_url
from engine.data.fetch.shards.braces import expanded

LIST_NAME: Final = "shards.list"
MAX_SHARDS: Final = 100_000
MAX_LIST_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 8 << 10
_HEAD_BYTES: Final = 64 << 10
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_JSON_LIST: Final = re.compile(r'\s*(\[\s*"|\{.*"shardlist"\s*:\s*\[)', re.DOTALL)
_PACKED: Final = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_ADVICE: Final = {
    **dict.fromkeys(_PACKED, "a packed tar cannot be read in parts: unpack it to a plain .tar and upload that"),
    **dict.fromkeys(
        (".zip", ".7z", ".rar"), "pack its files into a plain .tar, with one name for an image and its text"
    ),
    **dict.fromkeys(
        (".parquet", ".arrow", ".csv", ".json", ".jsonl"),
        "lists of tables are not read: give one table as dataset.url, or a dataset on the Hub as dataset.name",
    ),
}
_NAMES: Final = (".tar", *_ADVICE)


def is_list(path: Path) -> bool:
    """Return whether a downloaded file is meant as a list of shards. Raises OSError only.

    It is one if it is a short text whose first line is a URL or the name of a tar or another archive, or JSON that
    begins with a list of strings or has a `shardlist`, as the indices of the library wids.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    try:
        # Incremental: the head may end inside a character.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return False
    if _JSON_LIST.match(text):
        return True
    first = next((line for _, line in _significant(text.split("\n"))), "")
    if not first.isprintable() or first.startswith("<"):
        return False
    return bool(_SCHEME.match(first)) or _suffix_of(first) in _NAMES


def read_list(path: Path, base: str) -> list[str]:
    """Return the URLs of a list's shards, in its order.

    Args:
        path: the list.
        base: the URL that relative references in the list are resolved against.

    Raises:
        DatasetError: it is too long, or a line is no URL of a tar; the message names the line.
    """
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DatasetError(f"the list of shards has more than {MAX_LIST_BYTES:,} bytes: use fewer, larger shards")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"the list of shards is not UTF-8 text: byte {error.object[error.start]:#04x}") from None
    entries = _json_entries(text) if _JSON_LIST.match(text[:_HEAD_BYTES]) else _significant(text.split("\n"))
    # One more than is allowed: enough to see that there are too many.
    return _checked(_urls(islice(entries, MAX_SHARDS + 1), base))


def expand_url(url: str) -> list[str]:
    """Return the shards that a URL in brace notation stands for. Raises DatasetError."""
    return _checked(_urls(iter([("dataset.url", url)]), url))


def _significant(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines that are neither blank nor comments, each after its name in messages."""
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield f"line {number:,} of the list of shards", stripped


def _json_entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of a JSON list of strings, or of the `shardlist` of a wids index."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"the list of shards is not valid JSON: {str(error)[:100]}") from None
    found = value.get("shardlist") if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise DatasetError("the list of shards has no JSON array of URLs")
    for number, entry in enumerate(found):
        url = entry.get("url") if isinstance(entry, dict) else entry
        if not isinstance(url, str):
            raise DatasetError(f'entry {number:,} of the list of shards: expected a URL, or an object with a "url"')
        yield f"entry {number:,} of the list of shards", url.strip()


def _urls(entries: Iterator[tuple[str, str]], base: str) -> Iterator[tuple[str, str]]:
    """Yield each shard's place in the list, for messages, and its absolute URL."""
    for where, entry in entries:
        if len(entry.encode("utf-8", "surrogatepass")) > MAX_LINE_BYTES:
            raise DatasetError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes, which no URL of a shard is")
        try:
            texts = expanded(entry, MAX_SHARDS)
        except DatasetError as error:
            raise DatasetError(f"{where} {error}") from None
        for text in texts:
            yield where, _resolved(text, base, where)


def _resolved(text: str, base: str, where: str) -> str:
    """Return the absolute URL of an entry. Raises DatasetError unless it may be the http(s) URL of a tar."""
    url = ""
    try:
        url = urldefrag(urljoin(base, text)).url
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    # Without a scheme, a login in it would not be recognized, and shown.
    what = shown_url(url) if "://" in url else "no URL"
    if not is_url or not text.isprintable() or "\\" in text:
        raise DatasetError(f"{where} is {what}: expected an http or https URL of a tar")
    suffix = _suffix_of(url)
    if suffix in _ADVICE:
        raise DatasetError(f"{where} is {what}: {_ADVICE[suffix]}")
    return url


def _suffix_of(url: str) -> str:
    """Return the last suffix of a URL's path, in lower case."""
    return PurePosixPath(name_of(url)).suffix.lower()


def name_of(url: str) -> str:
    """Return the file's name in a URL, as in a folder."""
    try:
        path = urlsplit(url).path
    except ValueError:
        return ""
    return unquote(path).rpartition("/")[2]


def _checked(entries: Iterator[tuple[str, str]]) -> list[str]:
    """Return the URLs. Raises DatasetError if there are none, too many, or one of them twice."""
    found: dict[str, None] = {}
    for where, url in entries:
        if url in found:
            raise DatasetError(
                f"{where} names {shown_url(url)} a second time; list each shard once (dataset.repeats repeats all)"
            )
        if len(found) == MAX_SHARDS:
            raise DatasetError(f"the list of shards names more than {MAX_SHARDS:,}: use fewer, larger shards")
        found[url] = None
    if not found:
        raise DatasetError("the list of shards is empty")
    return list(found)
