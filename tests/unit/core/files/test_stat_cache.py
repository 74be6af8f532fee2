"""Notes of what whole files gave: found again while nothing has changed, and by nothing else."""

import mmap
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest

from engine.core.files import stat_cache
from engine.core.files.stat_cache import Identity, remembered

TICK = 0.02
"""Longer than the kernel's clock for files stands still."""


keeps_change_times = stat_cache._keeps_change_times


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch):
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
    monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)  # whatever the tests' folder lies on


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    time.sleep(TICK)
    return path


def key_of(*paths, cache):
    identity = Identity("content", cache)
    identity.add_files(paths)
    return identity.key


def read_through(path, cache):
    """The file's content, and whether it had to be read."""
    read = []
    identity = Identity("content", cache)
    identity.add_files([path])
    value = remembered(identity, cache, lambda: read.append(1) or path.read_text())
    return value, bool(read)


def test_a_file_is_read_once(tmp_path):
    path = write(tmp_path / "a", b"one")
    assert [read_through(path, tmp_path / "cache") for _ in range(3)] == [("one", True), ("one", False), ("one", False)]


def rewritten(path):
    path.write_bytes(b"two")


def replaced(path):
    path.with_name("beside").write_bytes(b"two")
    path.with_name("beside").replace(path)


def patched(path):
    with path.open("r+b") as file:
        file.write(b"two")


def mapped(path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 3) as view:
        view[:] = b"two"


@pytest.mark.parametrize("change", [rewritten, replaced, patched, mapped])
def test_a_change_is_seen_although_size_and_modification_time_are_as_before(tmp_path, change):
    path = write(tmp_path / "a", b"one")
    if change is mapped and not keeps_change_times(path.stat().st_dev):
        pytest.skip("this file system is not believed")
    assert read_through(path, tmp_path / "cache") == ("one", True)
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read_through(path, tmp_path / "cache") == ("two", True)


def test_what_was_just_written_is_not_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 3600 * 10**9)
    path = write(tmp_path / "a", b"one")
    assert [read_through(path, tmp_path / "cache")[1] for _ in range(2)] == [True, True]
    own = write(tmp_path / "cache/tables/a", b"one")  # of the cache itself: written whole, and never again
    assert [read_through(own, tmp_path / "cache")[1] for _ in range(2)] == [True, False]


@pytest.mark.parametrize("kind", ["another file system", "pipe", "empty"])
def test_what_may_change_without_a_mark_is_not_noted(tmp_path, monkeypatch, kind):
    path = write(tmp_path / "a", b"" if kind == "empty" else b"one")
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
        time.sleep(TICK)
    if kind == "another file system":
        monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: False)
    assert key_of(path, cache=tmp_path) is None


@pytest.mark.parametrize("path", ["/proc/version", "/dev/shm"])
def test_file_systems_whose_times_say_nothing(path):
    """/proc makes them up; tmpfs marks no write through a memory map."""
    assert not keeps_change_times(Path(path).stat().st_dev)


def test_a_note_on_tmpfs_does_not_stand_for_what_was_mapped_and_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(stat_cache, "_keeps_change_times", keeps_change_times)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = write(Path(folder) / "a", b"one")
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 3) as view:
            view[:] = b"two"
            time.sleep(TICK)
            assert read_through(path, tmp_path / "cache") == ("two", True)
            view[:] = b"six"  # its pages are never written back, however old the file's marks are
            assert read_through(path, tmp_path / "cache") == ("six", True)


def test_a_page_that_is_dirty_still_is_written_again_without_a_mark(tmp_path, monkeypatch):
    """So a file is believed only after every page that was dirty has been written back."""
    monkeypatch.undo()
    path = write(tmp_path / "a", b"one")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 3) as view:
        view[:] = b"two"
        time.sleep(2.5)
        assert read_through(path, tmp_path / "cache") == ("two", True)
        view[:] = b"six"
        assert read_through(path, tmp_path / "cache") == ("six", True)


def test_the_identity_knows_order_absence_words_and_columns(tmp_path):
    one, two = write(tmp_path / "a", b"one"), write(tmp_path / "b", b"two")
    keys = [key_of(*paths, cache=tmp_path) for paths in ([one], [two], [one, two], [two, one], [one, tmp_path / "c"])]
    assert None not in keys

    def of(*values, columns=()):
        identity = Identity("content", tmp_path)
        identity.add(*values)
        for column in columns:
            identity.add_column(pa.chunked_array([column]))
        return identity.key

    keys += [of(b"ab"), of(b"a", b"b"), of(columns=[["a", "b"]]), of(columns=[["a"], ["b"]]), of(columns=[["ab"]])]
    assert len(set(keys)) == len(keys)
    assert of(columns=[["a", "b"]]) == of(columns=[["a", "b"]])


@pytest.mark.parametrize("damage", [b"", b"0" * 64, b"\xff" * 100])
def test_a_damaged_note_is_no_note(tmp_path, damage):
    path = write(tmp_path / "a", b"one")
    read_through(path, tmp_path / "cache")
    (note,) = (tmp_path / "cache/notes").iterdir()
    note.write_bytes(damage)
    assert read_through(path, tmp_path / "cache") == ("one", True)
    assert read_through(path, tmp_path / "cache") == ("one", False)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    path = write(tmp_path / "a", b"one")
    (tmp_path / "cache").write_text("no folder")
    assert read_through(path, tmp_path / "cache") == ("one", True)
