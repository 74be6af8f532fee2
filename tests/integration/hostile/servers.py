"""URLs that lead where a task must not, and servers that stall, lie and change their minds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.integration.hostile.archives import FILES, zip_of
from tests.integration.hostile.case import MIB, Behaviour, Case, Cases, Place, body

ARCHIVE = zip_of(FILES)
PRIVATE = {
    "loopback": "http://127.0.0.1:{port}/0",
    "loopback by name": "http://localhost:{port}/0",
    "loopback, short": "http://127.1:{port}/0",
    "loopback as a number": "http://2130706433:{port}/0",
    "loopback in hexadecimal": "http://0x7f000001:{port}/0",
    "loopback in octal": "http://0177.0.0.1:{port}/0",
    "this host": "http://0.0.0.0:{port}/0",
    "IPv6 loopback": "http://[::1]:{port}/0",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]:{port}/0",
    "NAT64": "http://[64:ff9b::7f00:1]:{port}/0",
    "cloud metadata": "http://169.254.169.254/latest/meta-data/",
    "private": "http://10.0.0.1/x",
    "private, home": "http://192.168.1.1/x",
    "carrier": "http://100.64.0.1/x",
    "with a password that looks like a host": "http://example.org@127.0.0.1:{port}/0",
}
SCHEMES = (
    "file:///etc/passwd",
    "ftp://example.org/x",
    "gopher://127.0.0.1/",
    "data:text/csv,a",
    "s3://b/k",
    "//host/x",
)


def url(address: str, code: int, *words: str, **options: Any) -> Case:
    """A URL as it stands; `{port}` is that of a server that would answer."""

    def make(place: Place) -> Mapping[str, object]:
        place.server.url(ARCHIVE)
        return {"dataset": {"url": address.format(port=place.server.port)}}

    return Case(make=make, code=code, words=words, **options)


def server(behaviour: Behaviour, code: int, *words: str, **options: Any) -> Case:
    """A server of which private addresses are allowed."""

    def make(place: Place) -> Mapping[str, object]:
        return {"dataset": {"url": place.server.url(behaviour)}}

    return Case(make=make, code=code, words=words, connects=True, variables={"ALLOW_PRIVATE_URLS": "1"}, **options)


def moved(target: str) -> Behaviour:
    return body(b"", 302, Location=target)


def send_headers(handler: BaseHTTPRequestHandler, **headers: str) -> None:
    handler.send_response_only(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def lying(claimed: int, sent: bytes) -> Behaviour:
    """Says one length, sends another, closes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send_headers(handler, Content_Length=str(claimed))
        handler.wfile.write(sent)

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    send_headers(handler)
    while True:
        handler.wfile.write(bytes(MIB))


def dripping(pieces: Callable[[], bytes], pause: float) -> Behaviour:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        send_headers(handler, Content_Length="1000000")
        while True:
            handler.wfile.write(pieces())
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def stalling(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(300)


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for index in range(300):
        handler.wfile.write(b"X-%d: y\r\n" % index)
        time.sleep(1)


def many_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: " + b"y" * 60_000 + b"\r\n")


def noise(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff\x00\xff" * 1000)


def forever_elsewhere() -> Behaviour:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        moved(f"{handler.path.partition('?')[0]}?{time.monotonic_ns()}")(handler)

    return answer


def busy_then_fine() -> Behaviour:
    """503 and a lie about its length before it behaves."""
    script = [body(b"", 503), lying(len(ARCHIVE), ARCHIVE[:50]), body(ARCHIVE)]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (script.pop(0) if len(script) > 1 else script[0])(handler)

    return answer


SLOW = {"seconds": 200.0}
CASES: Cases = {
    **{f"{name}": url(address, 3, quick=name == "loopback") for name, address in PRIVATE.items()},
    **{f"scheme {address}": url(address, 2, "dataset.url") for address in SCHEMES},
    "no host": url("http:///x", 2, "dataset.url"),
    "a new line in the host": url("http://example.org\n.evil/x", 2),
    "to a file": server(moved("file:///etc/passwd"), 3, "not an http"),
    "to nothing": server(moved("http://"), 3),
    "a circle": server(forever_elsewhere(), 3, "redirects more than", quick=True),
    **{f"{status}": server(body(b"no", status), 3, str(status)) for status in (400, 401, 403, 404, 407, 410, 451)},
    "204": server(body(b"", 204), 3, "204"),
    "more than was asked for": server(body(ARCHIVE, Content_Encoding="br"), 3, "encoded"),
    "a file that is too large": server(lying(10 << 40, b""), 3, "larger than"),
    "a page for an archive": server(body(b"<html>login</html>", Content_Type="application/zip"), 3, "web page"),
    "a name that leads elsewhere": server(
        body(ARCHIVE, Content_Disposition='attachment; filename="../../../evil.zip"'), 0, "1 image", quick=True
    ),
    "trouble, then fine": server(busy_then_fine(), 0, "1 image", seconds=30, quick=True),
    "429": server(body(b"", 429), 75, "429", **SLOW),
    "503 for an hour": server(body(b"", 503, Retry_After="3600"), 75, "503", **SLOW),
    "closes in mid-body": server(lying(100_000, b"PK\x03\x04" * 20), 75, "100,000 bytes", **SLOW),
    "stalls": server(stalling, 75, "stalled", **SLOW),
    "drips": server(dripping(lambda: b"x", 0.5), 75, "stalled", **SLOW),
    "drips headers": server(dripping_headers, 75, **SLOW),
    "headers without end": server(many_headers, 75, **SLOW),
    "no HTTP": server(noise, 75, **SLOW),
    "nobody there": url("http://127.0.0.1:9/x", 75, variables={"ALLOW_PRIVATE_URLS": "1"}, connects=True, **SLOW),
}
BOUNDED = {"ALLOW_PRIVATE_URLS": "1", "MAX_DATASET_BYTES": str(64 * MIB)}
CASES["a body without end"] = Case(
    make=lambda place: {"dataset": {"url": place.server.url(endless)}},
    code=3,
    words=("larger than",),
    connects=True,
    variables=BOUNDED,
    memory=100 * MIB,
)


def _inside(place: Place) -> Mapping[str, object]:
    """The first hop is as private as the second here: unit tests look at the redirect alone."""
    return {"dataset": {"url": place.server.url(moved("http://169.254.169.254/"))}}


CASES["a redirect inside"] = Case(make=_inside, code=3, words=("ALLOW_PRIVATE_URLS",))


HIDDEN = {
    "loopback behind a name and a password": ("http://user:password@127.0.0.1:{port}/0", 3),
    "loopback in full-width digits": ("http://１２７.０.０.１:{port}/0", 3),
    "loopback in circled digits": ("http://①②⑦.⓪.⓪.①:{port}/0", 3),
    "loopback with ideographic stops": ("http://127。0。0。1:{port}/0", 3),
    "loopback in styled letters": ("http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/0", 3),
    "loopback, all short": ("http://0:{port}/0", 3),
    "loopback in mixed bases": ("http://0x7f.0.01:{port}/0", 3),
    "loopback, compatible": ("http://[::127.0.0.1]:{port}/0", 3),
    "loopback by 6to4": ("http://[2002:7f00:1::]:{port}/0", 3),
    "any address in IPv6": ("http://[::]:{port}/0", 3),
    "a backslash before the host": ("http://example.org\\@127.0.0.1:{port}/0", 2),
    "a backslash behind the host": ("http://127.0.0.1:{port}\\@example.org/0", 2),
    "two at signs": ("http://a@b@127.0.0.1:{port}/0", 3),
    "port 0": ("http://127.0.0.1:0/0", 3),
    "port 65536": ("http://127.0.0.1:65536/0", 2),
    "port -1": ("http://127.0.0.1:-1/0", 2),
    "a port in other digits": ("http://127.0.0.1:٨٠/0", 2),
    "a header behind the path": ("http://127.0.0.1:{port}/0 HTTP/1.1\r\nX: y", 2),
    "a tab in the scheme": ("ht\ttp://127.0.0.1:{port}/0", 2),
    "half an IPv6 address": ("http://[::1/0", 2),
    "no slashes": ("http:127.0.0.1:{port}/0", 2),
    "one slash": ("http:/127.0.0.1:{port}/0", 2),
    "a megabyte of path": ("http://127.0.0.1:{port}/" + "a" * MIB, 3),
}
CASES |= {name: url(address, code) for name, (address, code) in HIDDEN.items()}
CASES |= {
    "a zone that this machine has not": url("http://[fe80::1%25nothing]/0", 75, **SLOW),
    "a megabyte of path where it is allowed": server(body(b"", 414), 3, "414"),
    **{
        f"to {target[:30]!a}": server(moved(target), code)
        for target, code in (
            ("data:text/csv,image", 3),
            ("ftp://127.0.0.1/x", 3),
            ("javascript:alert(1)", 3),
            ("//127.0.0.1\\@example.org/", 3),
            ("//[", 3),
            ("http://[::1", 3),
            ("http://127.0.0.1:99999/", 3),
        )
    },
}
