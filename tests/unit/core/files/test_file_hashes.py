"""Digests of files: the same whether begun early, asked for at once, or noted; no thread of theirs is in the way."""

import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest

from engine.core.errors import ModelError
from engine.core.files import file_hashes as module
from engine.core.files import stat_cache
from engine.core.files.file_hashes import FileDigests
from engine.models.components import locating
from engine.task.task import Model
from tests.support.tiny import build_sd


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch):
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
    monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)


@pytest.fixture
def hashed(monkeypatch):
    """The threads that hashed something."""
    original, found = module._sha256, []
    monkeypatch.setattr(module, "_sha256", lambda file: found.append(threading.current_thread()) or original(file))
    return found


def write(path, data):
    path.write_bytes(data)
    time.sleep(0.02)  # longer than the kernel's clock for files stands still
    return path


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 5000])
@pytest.mark.parametrize("is_begun", [True, False])
def test_is_the_digest_of_the_bytes(tmp_path, monkeypatch, size, is_begun):
    monkeypatch.setattr(module, "_CHUNK", 1000)
    path, digests = write(tmp_path / "a", os.urandom(size)), FileDigests(tmp_path / "cache")
    if is_begun:
        digests.begin([path])
    assert digests.of(path) == digests.of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_is_computed_once_by_whichever_comes_first(tmp_path, hashed):
    path, cache = write(tmp_path / "a", b"x" * 5000), tmp_path / "cache"
    digests = FileDigests(cache)
    digests.begin([path, path])
    found = digests.of(path)
    assert FileDigests(cache).of(path) == found and len(hashed) == 1
    assert hashed[0] is not threading.current_thread()
    write(path, b"y" * 5000)
    assert FileDigests(cache).of(path) == hashlib.sha256(b"y" * 5000).hexdigest() and len(hashed) == 2


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_file_that_is_not_there_is_told_to_who_asks(tmp_path, is_begun):
    digests = FileDigests(tmp_path / "cache")
    if is_begun:
        digests.begin([tmp_path / "gone"])
    with pytest.raises(FileNotFoundError) as caught:
        digests.of(tmp_path / "gone")
    assert caught.value.filename == str(tmp_path / "gone")


def test_a_thread_keeps_no_process_from_ending(tmp_path):
    """This one would never end: nobody writes into the pipe."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import pathlib; from engine.core.files import file_hashes\n"
        f"file_hashes.FileDigests(pathlib.Path({str(tmp_path)!r})).begin([pathlib.Path({str(tmp_path / 'pipe')!r})])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_base_models_weights_are_hashed_ahead(tmp_path, hashed):
    folder, digests = build_sd(tmp_path / "model"), FileDigests(tmp_path / "cache")
    locating.hash_ahead(Model(name=str(folder)), digests)
    assert sorted(path.parent.name for path in digests._threads) == ["text_encoder", "unet", "vae"]
    places = {"pinned": None, "weights": True, "report": print, "cache_dir": tmp_path / "other"}
    ahead = locating.locate(Model(name=str(folder)), digests=digests, **places)
    assert len(hashed) == 3 and ahead.identity == locating.locate(Model(name=str(folder)), **places).identity


@pytest.mark.parametrize("name", ["/nowhere", "some/model", "https://host/a.safetensors", "/a\0b", "{}"])
def test_a_base_model_that_is_not_here_is_left_alone(tmp_path, name):
    digests = FileDigests(tmp_path / "cache")
    locating.hash_ahead(Model(name=name.format(tmp_path)), digests)
    assert digests._threads == {}


@pytest.mark.parametrize("change", ["none", "linked", "written", "replaced", "removed"])
def test_what_was_loaded_is_what_was_digested(tmp_path, change):
    path, digests = write(tmp_path / "a", b"x" * 5000), FileDigests(tmp_path / "cache")
    digests.of(path)
    if change == "linked":
        os.link(path, tmp_path / "backup")
    elif change == "written":
        with path.open("r+b") as file:
            file.write(b"y")
    elif change == "replaced":
        write(tmp_path / "b", b"y" * 5000).replace(path)
    elif change == "removed":
        path.unlink()
    if change in ("none", "linked"):
        digests.require_unchanged()
        return
    with pytest.raises(ModelError, match=r"/a has changed since the job began.*start it again$"):
        digests.require_unchanged()
