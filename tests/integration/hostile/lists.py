"""Lists of shards that lead where a task must not, or are too long; shards and parts that are not as said."""

from __future__ import annotations

from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from tests.integration.hostile.archives import FILES, tar_of, zip_of
from tests.integration.hostile.case import MIB, Behaviour, Case, Cases, Place, body
from tests.integration.hostile.servers import forever_elsewhere, lying, stalling, url
from tests.support.tiny import SMALL_PNG

TAR: Final = tar_of(("1.png", SMALL_PNG), ("1.txt", b"a"), usual=False)
ALLOWED: Final = {"ALLOW_PRIVATE_URLS": "1"}
NOT_KEPT: Final = {**ALLOWED, "MAX_CACHE_BYTES": "0"}


def listing(text: bytes, *words: str, code: int = 3, shard: Behaviour | None = None, **options: Any) -> Case:
    """A list of shards, in which `@` stands for the address of a shard."""

    def make(place: Place) -> Mapping[str, object]:
        address = place.server.url(shard or TAR).encode()
        return {"dataset": {"url": place.server.url(text.replace(b"@", address))}}

    return Case(make=make, code=code, words=words, connects=True, **{"variables": ALLOWED, **options})


def part(answer: Behaviour) -> Behaviour:
    """A shard whose parts beyond its first block are answered so; all else is as it should be."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        start, _, end = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not end:
            body(TAR)(handler)
        elif start != "0":
            answer(handler)
        else:
            body(TAR[: int(end) + 1], 206, Content_Range=f"bytes 0-{end}/{len(TAR)}")(handler)

    return send


def other_bytes(handler: BaseHTTPRequestHandler) -> None:
    start, _, end = handler.headers["Range"].removeprefix("bytes=").partition("-")
    body(bytes(int(end) + 1 - int(start)), 206, Content_Range=f"bytes {start}-{end}/{len(TAR)}")(handler)


def another_length(handler: BaseHTTPRequestHandler) -> None:
    body(b"x", 206, Content_Range=f"bytes 512-512/{len(TAR)}")(handler)


CASES: Cases = {
    "of a file": listing(b"@\nfile:///etc/passwd", "line 2", "http", quick=True),
    "one shard twice": listing(b"@\n@", "line 2", "second time"),
    "too many": listing(b"".join(b"%07d.tar\n" % number for number in range(100_001)), "100,000"),
    "a line without end": listing(b"@\n" + b"x" * MIB, "line 2", "8,192"),
    "100 MiB": listing(b"@\n" + b"#" * (100 * MIB), "67,108,864"),
    "zeros": listing(b"@\n" + bytes(MIB), "line 2"),
    "nested JSON": listing(b'["a.tar",' + b"[" * 100_000, "JSON"),
    "private": url("http://127.0.0.1:{port}/x-{{0..3}}.tar", 3, "shard 1 of 4", "ALLOW_PRIVATE_URLS"),
    "a billion": url("http://127.0.0.1:{port}/x-{{0..999999999}}.tar", 3, "100,000"),
    "letters": url("http://127.0.0.1:{port}/x-{{a..b}}.tar", 3, "range of numbers"),
    "braces in braces": url("http://127.0.0.1:{port}/x-{{{{0..1}}}}.tar", 3, "braces inside braces"),
    "a shard that is too large": listing(b"@", "shard 1 of 1", "MAX_DATASET_BYTES", shard=lying(10 << 40, b"")),
    "a shard in a circle": listing(b"@", "redirects more than", shard=forever_elsewhere()),
    "a shard of another kind": listing(b"@", "zip archive", "uncompressed tar", shard=body(zip_of(FILES))),
    "parts of other bytes": listing(
        b"@", "has changed on its server", shard=part(other_bytes), train=True, variables=NOT_KEPT
    ),
    "parts of another length": listing(
        b"@", "another range", code=75, shard=part(another_length), train=True, variables=NOT_KEPT, seconds=190.0
    ),
    "parts that stall": listing(
        b"@", "stalled", code=75, shard=part(stalling), train=True, variables=NOT_KEPT, seconds=190.0
    ),
}
