"""Parts of remote files: what is asked for, and answers that are refused, tried again or mean "fetch the whole"."""

import os
import time
from dataclasses import replace

import pytest

from engine.core.errors import DatasetError, TemporaryError
from engine.core.limits import DEFAULT_LIMITS
from engine.data.fetch.shards.ranges import NoRangesError, RangeReader, RemoteFile
from tests.support.shard_server import HASTY, OPEN

BODY = os.urandom(300_000)


@pytest.fixture
def file(server):
    server.files = {"a.tar": BODY}
    return RemoteFile(server.url("a.tar?token=secret"), len(BODY), f'"{hash(BODY):x}"')


@pytest.fixture
def reader(lines):
    return RangeReader(OPEN, HASTY, lines.append)


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (512, 200_000), (299_999, 1), (0, 300_000)])
def test_a_part(server, file, reader, offset, size):
    assert reader.read(file, offset, size) == BODY[offset : offset + size]
    assert server.requests == [("/a.tar?token=secret", f"bytes={offset}-{offset + size - 1}")]


def test_a_server_without_ranges(server, file, reader):
    server.ranges = False
    with pytest.raises(NoRangesError):
        reader.read(file, 512, 10)


def test_another_version(server, file, reader):
    server.files = {"a.tar": os.urandom(len(BODY))}
    with pytest.raises(NoRangesError):
        reader.read(file, 512, 10)


def test_another_size_where_no_version_is_known(server, file, reader):
    server.files = {"a.tar": BODY + b"more"}
    with pytest.raises(NoRangesError):
        reader.read(RemoteFile(file.url, len(BODY), None), 512, 10)


def test_an_answer_that_fails_once(server, file, reader, lines):
    answers = iter([503])

    def answer(handler):
        status = next(answers, None)
        if status is not None:
            server.send(handler, status, b"")
        return status is not None

    server.answer = answer
    assert reader.read(file, 512, 10) == BODY[512:522]
    assert "503" in lines[0]
    assert "secret" not in lines[0]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY[:10], {"Content-Range": "bytes 0-9/300000"}),
        (BODY[512:522], {}),
        (BODY[512:521], {"Content-Range": "bytes 512-521/300000"}),
        (BODY[512:521], {"Content-Range": "bytes 512-521/300000", "Content-Length": "10"}),
        (BODY[512:], {"Content-Range": "bytes 512-521/300000"}),
        (BODY[512:], {"Content-Range": "bytes 512-521/300000", "Transfer-Encoding": "identity"}),
    ],
    ids=["another start", "no range", "shorter", "cut off", "longer", "longer without a length"],
)
def test_answers_of_another_range_end_after_some_attempts(server, file, reader, body, headers):
    def answer(handler):
        server.send(handler, 206, body, **headers)
        return True

    server.answer = answer
    with pytest.raises(TemporaryError, match="in 4 attempts") as caught:
        reader.read(file, 512, 10)
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 4


def test_a_stalling_server(server, file, lines):
    reader = RangeReader(OPEN, replace(HASTY, stall_seconds=0.5), lines.append)

    def answer(handler):
        handler.send_response_only(206)
        handler.send_header("Content-Range", "bytes 512-300511/300000")
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(b"x")
            time.sleep(0.1)
        return True

    server.answer = answer
    with pytest.raises(TemporaryError, match="stalled"):
        reader.read(file, 512, 200_000)


@pytest.mark.parametrize(("status", "message"), [(403, "signed link may have expired.*MAX_CACHE_BYTES"), (404, "404")])
def test_refused(server, file, reader, status, message):
    def answer(handler):
        server.send(handler, status, b"")
        return True

    server.answer = answer
    with pytest.raises(DatasetError, match=message) as caught:
        reader.read(file, 512, 10)
    assert "secret" not in str(caught.value)


def test_private_addresses_also_after_a_redirect(server, file, lines):
    with pytest.raises(DatasetError, match="private"):
        RangeReader(DEFAULT_LIMITS, HASTY, lines.append).read(file, 0, 1)
    assert not server.requests
