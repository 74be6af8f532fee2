"""Status codes and header fields of answers, the false ones included."""

import time
from email.utils import formatdate

import pytest

from engine.core.errors import DatasetError, TemporaryError
from tests.support.origin_server import ARCHIVE, FILES, answer, contents, leftovers, ranged


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


def test_a_part_of_a_split_archive_is_known_by_its_name(server, get):
    server.script = [answer(body=b"\x00no head\x00" * 9)]
    with pytest.raises(DatasetError, match="part of a split archive"):
        get(server.url + ".zip.002")
