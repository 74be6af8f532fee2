"""Redirects, proxies, servers that are not there and servers that stop sending."""

import socket
import time

import pytest

from engine.core.errors import DatasetError, TaskError, TemporaryError
from engine.data.fetch import Limits, Policy, fetch_dataset
from tests.support.origin_server import ARCHIVE, FILES, OPEN, answer, contents, ranged


def test_redirects_relative_and_absolute(server, get):
    server.script = [answer(302, Location="/other?x=1"), answer(308, Location=server.url + "2"), answer(body=ARCHIVE)]
    assert contents(get()) == FILES
    assert [path for path, _ in server.requests] == ["/data", "/other?x=1", "/data2"]


def test_a_password_is_for_its_hop_alone_and_in_no_message(server, get):
    server.script = [answer(302, Location=server.url + "2"), answer(404)]
    with pytest.raises(DatasetError) as caught:
        get(server.url.replace("//", "//user:secret@") + "?token=secret")
    assert "secret" not in str(caught.value)
    assert [("Authorization" in headers) for _, headers in server.requests] == [True, False]


def test_a_redirect_loop(server, get):
    server.script = [answer(302, Location="/data")]
    with pytest.raises(DatasetError, match="redirects more than 10 times"):
        get()
    assert len(server.requests) == 11


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/x", "gopher://x", "//[bad", "data:,x"])
def test_redirects_elsewhere(server, get, target):
    server.script = [answer(302, Location=target)]
    with pytest.raises(DatasetError, match=r"not an http or https URL|not a valid URL"):
        get()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org", "x", "", "http://", "http://a b/", "http://[::1", "http://\x00/"]
)
def test_urls_that_are_none(get, url):
    with pytest.raises(DatasetError):
        get(url or " ")


def test_through_a_proxy(server, get, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.script = [answer(body=ARCHIVE)]
    assert contents(get("http://far.invalid/x", limits=Limits())) == FILES
    assert server.requests[0][0] == "http://far.invalid/x"
    with pytest.raises(DatasetError, match="ALLOW_PRIVATE_URLS"):
        get("http://10.0.0.1/x", limits=Limits())


def test_an_unusable_proxy(get, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(TaskError, match="proxy"):
        get("http://far.invalid/x")


def test_nobody_there(get, clock):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x?token=secret"
        with pytest.raises(TemporaryError, match="refused") as caught:
            get(url)
    assert "secret" not in str(caught.value)
    assert len(clock.slept) >= 3 and clock.now <= 120


def test_no_such_name(get, clock, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(TemporaryError, match="name resolution"):
        get("http://nowhere.example/x")


def drip(before: bytes, piece: bytes):
    def send(handler):
        handler.wfile.write(before)
        while True:
            handler.wfile.write(piece)
            time.sleep(0.05)

    return send


@pytest.mark.parametrize(
    "send",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        drip(b"", b""),
    ],
    ids=["body", "body without length", "headers", "chunk size", "silence"],
)
def test_stalls(server, tmp_path, send):
    server.script = [send]
    policy = Policy(stall_seconds=0.25, sleep=lambda seconds: None)
    begin = time.monotonic()
    with pytest.raises(TemporaryError, match="stalled"):
        fetch_dataset(server.url, tmp_path / "cache", limits=OPEN, policy=policy, report=lambda line: None)
    assert time.monotonic() - begin < 6
    assert len(server.requests) >= 4


def test_a_stall_then_fine(server, tmp_path):
    server.script = [
        drip(b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: 300000\r\n\r\n', b"x"),
        ranged(ARCHIVE, '"v2"'),
    ]
    policy = Policy(stall_seconds=0.25, sleep=lambda seconds: None)
    folder = fetch_dataset(server.url, tmp_path / "cache", limits=OPEN, policy=policy, report=lambda line: None)
    assert contents(folder) == FILES
