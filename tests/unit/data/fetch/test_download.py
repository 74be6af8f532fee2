"""Bodies that end early, change, grow too large or come packed; downloads that are resumed."""

import gzip
import os

import pytest

from engine.core.errors import DatasetError, OutputError, TemporaryError
from engine.data.fetch import Limits, Policy, fetch_dataset
from tests.support.archives import zip_of
from tests.support.origin_server import ARCHIVE, FILES, OPEN, answer, contents, leftovers, ranged


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


def test_progress_is_told(server, tmp_path):
    lines = []
    ticks = iter(range(10_000))
    server.script = [answer(body=ARCHIVE, Content_Disposition="attachment; filename=cats.zip")]
    fetch_dataset(server.url, tmp_path, limits=OPEN, policy=Policy(clock=lambda: next(ticks)), report=lines.append)
    assert any(line.startswith("downloading cats.zip: ") and "MB/s" in line for line in lines)
    assert lines[-1].startswith("unpacking http://127.0.0.1")
