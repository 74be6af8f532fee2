"""Downloads against a real server that misbehaves in every way listed here."""

import gzip
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.core.errors import DatasetError, OutputError, TaskError, TemporaryError
from engine.data import fetch
from engine.data.fetch import Limits, Policy, addresses, fetch_dataset
from engine.data.fetch.addresses import is_public


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


FILES = {"metadata.jsonl": b'{"file_name": "1.png", "text": "a"}\n', "1.png": os.urandom(300_000)}
ARCHIVE = zip_of(FILES)
OPEN = Limits(allow_private_urls=True)


class Server:
    """Answers each request by the next function of its script; the last one answers all others."""

    def __init__(self) -> None:
        self.script = []
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests.append((self.path, dict(self.headers)))
                answer = server.script[min(len(server.requests), len(server.script)) - 1]
                self.close_connection = True
                answer(self)

            def log_message(self, *args):
                pass

            def handle(self):
                with suppress(OSError):
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/data"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def answer(status=200, body=b"", **headers):
    def send(handler):
        handler.send_response_only(status)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fields.setdefault("Content-Length", str(len(body)))
        for name, value in fields.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def ranged(body, etag='"v1"', cut=None, **headers):
    """Honours Range under If-Range; sends at most `cut` bytes before it closes the connection."""

    def send(handler):
        start = 0
        if handler.headers.get("Range") and handler.headers.get("If-Range") == etag:
            start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        handler.send_response_only(206 if start else 200)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        handler.wfile.write(body[start:][:cut])

    return send


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def get(server, clock, tmp_path):
    def get(url=None, limits=OPEN, **policy):
        lines = []
        rules = Policy(clock=lambda: clock.now, sleep=clock.sleep, stall_seconds=2, **policy)
        folder = fetch_dataset(url or server.url, tmp_path / "cache", limits=limits, policy=rules, report=lines.append)
        assert all(isinstance(line, str) and "\n" not in line for line in lines)
        return folder

    return get


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(tmp_path) -> list[str]:
    """What lies in the cache besides whole content, pointers to it and locks."""
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return [str(path) for path in files if path.suffix == ".part" or ".building" in str(path) or path.suffix == ".tmp"]


def test_plain_then_not_asked_again(server, get, tmp_path):
    server.script = [answer(body=ARCHIVE, Content_Disposition='attachment; filename="../../evil.zip"')]
    folder = get()
    assert folder == tmp_path / "cache" / "datasets" / "content" / hashlib.sha256(ARCHIVE).hexdigest()
    assert contents(folder) == FILES
    assert get() == folder
    assert len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"
    assert not leftovers(tmp_path) and not (tmp_path / "evil.zip").exists()


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


PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00::1",
    "ff02::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2001::1",
    "100::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "172.32.0.1"]
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_hosts_are_refused(server, get, host):
    with pytest.raises(DatasetError, match="ALLOW_PRIVATE_URLS=1"):
        get(server.url.replace("127.0.0.1", host), limits=Limits())
    assert server.requests == []


@pytest.fixture
def dns(monkeypatch):
    """Names and the addresses they have, one list for each look-up."""
    table = {}
    real = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        if host in table:
            found = table[host].pop(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


def test_a_name_that_leads_inside(server, get, dns):
    dns["public.example"] = [["8.8.8.8", "127.0.0.1"]]
    with pytest.raises(DatasetError, match=r"127\.0\.0\.1"):
        get(server.url.replace("127.0.0.1", "public.example"), limits=Limits())


def test_the_checked_address_is_the_one_connected_to(server, get, dns, monkeypatch):
    """The second look-up would say something else: there is none."""
    port = int(server.url.split(":")[2].split("/")[0])
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    dns["rebound.example"] = [["127.0.0.1"]]
    server.script = [answer(body=ARCHIVE)]
    assert contents(get(f"http://rebound.example:{port}/x", limits=Limits())) == FILES
    assert server.requests[0][1]["Host"] == f"rebound.example:{port}"


def test_a_redirect_that_leads_inside(server, get, dns, monkeypatch):
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    server.script = [answer(302, Location="http://169.254.169.254/latest/meta-data")]
    with pytest.raises(DatasetError, match=r"169\.254\.169\.254"):
        get(limits=Limits())


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


@pytest.mark.parametrize(
    ("status", "advice"),
    [(404, "check the URL"), (403, "expired"), (410, "gone"), (401, "login"), (418, "check the URL"), (204, "")],
)
def test_refusals(server, get, status, advice, tmp_path):
    server.script = [answer(status)]
    with pytest.raises(DatasetError, match=f"answered {status}.*{advice}"):
        get()
    assert len(server.requests) == 1 and not leftovers(tmp_path)


def test_busy_then_fine(server, get, clock):
    server.script = [answer(503), answer(429, Retry_After="5"), answer(body=ARCHIVE)]
    assert contents(get()) == FILES
    assert clock.slept == [1, 5]


def test_a_date_to_retry_after(server, get, clock):
    server.script = [answer(503, Retry_After=formatdate(time.time() + 9, usegmt=True)), answer(body=ARCHIVE)]
    get()
    assert 7 < clock.slept[0] < 10


@pytest.mark.parametrize("wait", ["0", "7", "999999", "-1", "x"])
def test_never_fine(server, get, clock, wait):
    server.script = [answer(429, Retry_After=wait)]
    with pytest.raises(TemporaryError, match="the server answered 429"):
        get()
    assert 4 <= len(server.requests) <= 6
    assert clock.now <= 120


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


def test_closed_in_mid_body_then_resumed(server, get):
    server.script = [ranged(ARCHIVE, cut=1000), ranged(ARCHIVE, cut=70_000), ranged(ARCHIVE)]
    assert contents(get()) == FILES
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=1000-", "bytes=71000-"]


def test_resumed_by_another_process(server, get, tmp_path):
    server.script = [ranged(ARCHIVE, cut=1000), answer(404)]
    with pytest.raises(DatasetError):
        get()
    assert leftovers(tmp_path)
    server.script = [ranged(ARCHIVE)]
    assert contents(get()) == FILES
    assert server.requests[-1][1]["Range"] == "bytes=1000-"


def test_a_server_that_ignores_ranges(server, get):
    whole = answer(body=ARCHIVE, ETag='"v1"')
    server.script = [ranged(ARCHIVE, cut=1000), whole]
    assert contents(get()) == FILES


def test_changed_in_between(server, get):
    other = zip_of({"new.png": os.urandom(5000)})
    server.script = [ranged(ARCHIVE, cut=1000), ranged(other, etag='"v2"')]
    assert set(contents(get())) == {"new.png"}
    assert server.requests[1][1]["If-Range"] == '"v1"'


@pytest.mark.parametrize(
    "lie",
    [
        answer(206, ARCHIVE[999:], Content_Range=f"bytes 999-{len(ARCHIVE) - 1}/{len(ARCHIVE)}", ETag='"v1"'),
        answer(206, ARCHIVE[1000:], Content_Range=f"bytes 1000-{len(ARCHIVE) - 1}/{len(ARCHIVE) + 9}", ETag='"v1"'),
        answer(206, ARCHIVE[1000:], Content_Range=f"bytes 1000-{len(ARCHIVE) - 1}/{len(ARCHIVE)}", ETag='"v2"'),
        answer(206, ARCHIVE[1000:], ETag='"v1"'),
        answer(416),
    ],
)
def test_lies_about_ranges(server, get, lie):
    server.script = [ranged(ARCHIVE, cut=1000), lie, ranged(ARCHIVE)]
    assert contents(get()) == FILES
    assert "Range" not in server.requests[2][1]


def test_no_validator_no_range(server, get):
    server.script = [answer(body=ARCHIVE[:1000], Content_Length=str(len(ARCHIVE)), ETag='W/"v1"'), answer(body=ARCHIVE)]
    assert contents(get()) == FILES
    assert "Range" not in server.requests[1][1]


def test_an_old_date_is_a_validator(server, get):
    dates = {"Date": formatdate(1e9, usegmt=True), "Last_Modified": formatdate(9e8, usegmt=True)}
    part = answer(206, ARCHIVE[1000:], Content_Range=f"bytes 1000-{len(ARCHIVE) - 1}/{len(ARCHIVE)}", **dates)
    server.script = [answer(body=ARCHIVE[:1000], Content_Length=str(len(ARCHIVE)), **dates), part]
    assert contents(get()) == FILES
    assert server.requests[1][1]["If-Range"] == formatdate(9e8, usegmt=True)


def test_always_short(server, get):
    server.script = [answer(body=ARCHIVE[:1000], Content_Length=str(len(ARCHIVE)))]
    with pytest.raises(TemporaryError, match="in 6 attempts"):
        get()


def chunked(handler, body=ARCHIVE, end=b"0\r\n\r\n"):
    handler.send_response_only(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(body), 99_999):
        piece = body[start : start + 99_999]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(end)


def test_chunked(server, get):
    server.script = [lambda handler: chunked(handler, ARCHIVE[:200_000], b""), chunked]
    assert contents(get()) == FILES
    assert len(server.requests) == 2


def test_without_length(server, get):
    server.script = [answer(body=ARCHIVE, Content_Length=None)]
    assert contents(get()) == FILES


def test_gzip_that_nobody_asked_for(server, get):
    table = b"file_name,text\n1.png,a\n"
    server.script = [answer(body=gzip.compress(table), Content_Encoding="gzip")]
    assert contents(get()) == {"data.csv": table}
    server.script = [answer(body=b"x", Content_Encoding="br")]
    with pytest.raises(DatasetError, match="br"):
        get(server.url + "2")


def test_a_web_page(server, get, tmp_path):
    server.script = [answer(body=b"<!doctype html><html>log in"), answer(body=ARCHIVE)]
    with pytest.raises(DatasetError, match="web page"):
        get()
    assert not leftovers(tmp_path)
    assert contents(get()) == FILES


@pytest.mark.parametrize("declared", [True, False])
def test_too_large(server, get, declared):
    send = answer(body=ARCHIVE) if declared else chunked
    server.script = [send]
    with pytest.raises(DatasetError, match="MAX_DATASET_BYTES"):
        get(limits=Limits(allow_private_urls=True, max_dataset_bytes=100_000))
    assert len(server.requests) == 1


def test_more_than_the_disk_holds(server, get):
    server.script = [answer(Content_Length=str(10**15))]
    with pytest.raises(OutputError, match="1,000,000,000,000,000"):
        get(limits=Limits(allow_private_urls=True, max_dataset_bytes=10**16))


def test_a_cache_that_cannot_be_written(server, get, tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(OutputError):
        get()


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


def test_progress_is_told(server, tmp_path):
    lines = []
    ticks = iter(range(10_000))
    server.script = [answer(body=ARCHIVE, Content_Disposition="attachment; filename=cats.zip")]
    fetch_dataset(server.url, tmp_path, limits=OPEN, policy=Policy(clock=lambda: next(ticks)), report=lines.append)
    assert any(line.startswith("downloading cats.zip: ") and "MB/s" in line for line in lines)
    assert lines[-1].startswith("unpacking http://127.0.0.1")


def test_other_urls_with_the_same_bytes_share_the_content(server, get):
    server.script = [answer(body=ARCHIVE)]
    assert get() == get(server.url + "2")


def test_notes_on_names_are_said_again(server, tmp_path):
    """By the next task of a chain, and by another URL with the same bytes."""
    body = zip_of({"abcd.png": b"1"}).replace(b"abcd", "猫娘".encode("gbk"))
    server.script = [answer(body=body)]
    for path in ("x", "x", "y"):
        lines = []
        fetch_dataset(f"{server.url}/{path}", tmp_path / "cache", report=lines.append, limits=OPEN)
        assert sum("encoding that the archive does not tell" in line for line in lines) == 1


def test_a_part_of_a_split_archive_is_known_by_its_name(server, get):
    server.script = [answer(body=b"\x00no head\x00" * 9)]
    with pytest.raises(DatasetError, match="part of a split archive"):
        get(server.url + ".zip.002")


def test_a_lost_or_damaged_pointer_means_another_download(server, get, tmp_path):
    server.script = [answer(body=ARCHIVE)]
    folder = get()
    (pointer,) = (tmp_path / "cache/datasets/url").glob("*.json")
    for text in ("", "{}", '{"content": "../../.."}', '{"content": 1}', "[1]"):
        pointer.write_text(text)
        assert get() == folder


SCRIPT = """
import sys, os, signal
from pathlib import Path
from engine.data import fetch
if sys.argv[3] == "kill":
    real = fetch.extract
    def extract(*args):
        real(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    fetch.extract = extract
limits = fetch.Limits(allow_private_urls=True)
print(fetch.fetch_dataset(sys.argv[1], Path(sys.argv[2]), limits=limits, report=lambda line: None))
"""


def start(server, cache, mode="run"):
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(fetch.__file__).parents[3])


def test_killed_before_publishing(server, get, tmp_path):
    server.script = [ranged(ARCHIVE)]
    with start(server, tmp_path / "cache", "kill") as process:
        assert process.wait() == -signal.SIGKILL
    content = tmp_path / "cache/datasets/content"
    assert [path.name.endswith(".building") for path in content.iterdir()] == [True]
    folder = get()
    assert contents(folder) == FILES
    assert list(content.iterdir()) == [folder]
    assert len(server.requests) == 1, "the whole download was kept"


def test_what_other_dead_processes_left_is_swept(server, get, tmp_path):
    server.script = [ranged(ARCHIVE)]
    start(server, tmp_path / "cache", "kill").communicate()
    folder = get(server.url + "2")
    assert list((tmp_path / "cache/datasets/content").iterdir()) == [folder]


def test_two_at_once(server, tmp_path):
    def slowly(handler):
        time.sleep(0.5)
        answer(body=ARCHIVE)(handler)

    server.script = [slowly]
    running = [start(server, tmp_path / "cache") for _ in range(2)]
    folders = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(folders) == 1 and len(server.requests) == 1
    assert contents(Path(folders.pop())) == FILES


def test_limits_from_the_environment():
    assert Limits.from_environment({}) == Limits(max_dataset_bytes=50 << 30)
    assert Limits.from_environment({"MAX_DATASET_BYTES": "", "ALLOW_PRIVATE_URLS": ""}) == Limits()
    assert Limits.from_environment({"MAX_DATASET_BYTES": "7", "ALLOW_PRIVATE_URLS": "1"}) == Limits(
        max_dataset_bytes=7, allow_private_urls=True
    )
    for name, value in [("MAX_DATASET_BYTES", "50GB"), ("MAX_DATASET_BYTES", "0"), ("ALLOW_PRIVATE_URLS", "yes")]:
        with pytest.raises(TaskError, match=name):
            Limits.from_environment({name: value})
