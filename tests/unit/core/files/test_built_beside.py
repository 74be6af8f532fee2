"""Outputs that are built beside their place: whole or absent, and never over something that is there."""

from __future__ import annotations

import pytest

from engine.core.errors import OutputError
from engine.core.files import built_beside
from engine.core.files.built_beside import Streamed, new_bytes, write_folder, write_one

TEXT = Streamed(6, lambda: iter((b"abc", memoryview(b"def"))))


def broken():
    yield b"half"
    raise KeyboardInterrupt


def quiet(count):
    pass


def write(target, *, overwrite=False, content=TEXT, kind="file"):
    if kind == "file":
        write_one(target, content, overwrite=overwrite, written=quiet)
    else:
        write_folder(target, {"a/b": content, "c": b"c"}, overwrite=overwrite, written=quiet)


@pytest.mark.parametrize("kind", ["file", "folder"])
class TestBoth:
    def test_what_is_there_stays(self, tmp_path, kind):
        target = tmp_path / "out"
        target.write_bytes(b"mine")
        with pytest.raises(OutputError, match="is there already: choose another --output, or replace it"):
            write(target, kind=kind)
        assert target.read_bytes() == b"mine"

    def test_only_its_like_is_overwritten(self, tmp_path, kind):
        target = tmp_path / "out"
        target.mkdir() if kind == "file" else target.write_bytes(b"mine")
        with pytest.raises(OutputError, match=r"and this format is a (file|folder): choose another --output"):
            write(target, kind=kind, overwrite=True)
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="is a link"):
            write(link, kind=kind, overwrite=True)

    def test_an_interruption_leaves_nothing(self, tmp_path, kind):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", kind=kind, content=Streamed(9, broken))
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_leaves_what_was_there(self, tmp_path, kind):
        write(tmp_path / "out", kind=kind)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", kind=kind, content=Streamed(9, broken), overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        found = tmp_path / "out" if kind == "file" else tmp_path / "out" / "a" / "b"
        assert found.read_bytes() == b"abcdef"

    def test_remains_of_a_killed_export_are_no_obstacle(self, tmp_path, kind):
        (tmp_path / ".out.exporting").mkdir()
        (tmp_path / ".out.exporting" / "x").write_bytes(b"half")
        write(tmp_path / "out", kind=kind)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    for name in ("c", "old"):
        (target / name).write_bytes(b"old")
    write(target, kind="folder", overwrite=True)
    assert sorted(path.name for path in target.iterdir()) == ["a", "c"]
    assert (target / "c").stat().st_mode & 0o777 == 0o644


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"mine")
    with pytest.raises(OutputError, match="is not a folder that an export made"):
        write(tmp_path, kind="folder", overwrite=True)
    assert (tmp_path / "a" / "b").read_bytes() == b"mine"


def test_a_folder_comes_back_if_its_replacement_was_killed(tmp_path):
    """Where names cannot be swapped at once, the old folder is aside for a moment."""
    (tmp_path / ".out.exporting.replaced").mkdir()
    (tmp_path / ".out.exporting.replaced" / "old").write_bytes(b"old")
    with pytest.raises(OutputError, match="is there already"):
        write(tmp_path / "out", kind="folder")
    assert (tmp_path / "out" / "old").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_are_linked_or_copied(tmp_path, monkeypatch):
    """Links of the Hub's cache lead to files, which are linked themselves."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    link = tmp_path / "link"
    link.symlink_to(blob)
    count = []
    write_folder(tmp_path / "one", {"w": link}, overwrite=False, written=count.append)
    assert (tmp_path / "one" / "w").stat().st_ino == blob.stat().st_ino and count == [7]
    assert new_bytes(tmp_path / "two", {"w": link, "b": b"12", "s": TEXT}) == 8

    def refuse(*_):
        raise OSError(18, "other file system")

    monkeypatch.setattr(built_beside.os, "link", refuse)
    write_folder(tmp_path / "two", {"w": link}, overwrite=False, written=quiet)
    assert (tmp_path / "two" / "w").stat().st_ino != blob.stat().st_ino
    assert (tmp_path / "two" / "w").read_bytes() == b"weights"
