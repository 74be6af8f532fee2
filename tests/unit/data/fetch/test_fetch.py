"""Downloads against a real server that misbehaves in every way listed here."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.core.errors import DatasetError, OutputError
from engine.data import fetch
from engine.data.fetch import fetch_dataset
from tests.support.archives import zip_of
from tests.support.origin_server import ARCHIVE, FILES, OPEN, answer, contents, leftovers, ranged


def test_plain_then_not_asked_again(server, get, tmp_path):
    server.script = [answer(body=ARCHIVE, Content_Disposition='attachment; filename="../../evil.zip"')]
    folder = get()
    assert folder == tmp_path / "cache" / "datasets" / "content" / hashlib.sha256(ARCHIVE).hexdigest()
    assert contents(folder) == FILES
    assert get() == folder
    assert len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"
    assert not leftovers(tmp_path) and not (tmp_path / "evil.zip").exists()


def test_a_web_page(server, get, tmp_path):
    server.script = [answer(body=b"<!doctype html><html>log in"), answer(body=ARCHIVE)]
    with pytest.raises(DatasetError, match="web page"):
        get()
    assert not leftovers(tmp_path)
    assert contents(get()) == FILES


def test_a_cache_that_cannot_be_written(server, get, tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(OutputError):
        get()


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
