"""Encodings on disk: a hit is a miss's bits, and no disk can end a job."""

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from engine.training.encoding import cache as cache_module
from engine.training.encoding.cache import EncodingCache

KEY, OTHER = "ab" * 32, "cd" * 32
TENSORS = {
    "mean": torch.linspace(-1, 1, 12).reshape(3, 4),
    "half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}


def cache(folder, max_bytes=1 << 20, **namespace):
    return EncodingCache(folder, {"encoder": "x"} | namespace, max_bytes=max_bytes)


def stored_files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_hit_is_what_was_stored(tmp_path):
    cache(tmp_path).store(KEY, TENSORS)
    found = cache(tmp_path).load(KEY)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert found[name].untyped_storage().nbytes() == tensor.nbytes, "memory of its own"


def test_hits_are_not_shared(tmp_path):
    one = cache(tmp_path)
    one.store(KEY, TENSORS)
    one.load(KEY)["mean"].zero_()
    assert one.load(KEY)["mean"].any()


def test_key_and_namespace_tell_entries_apart(tmp_path):
    cache(tmp_path).store(KEY, TENSORS)
    assert cache(tmp_path).load(OTHER) is None
    assert cache(tmp_path, device="y").load(KEY) is None
    assert cache(tmp_path / "elsewhere").load(KEY) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "noise", "folder"])
def test_a_damaged_file_is_a_miss_and_is_mended(tmp_path, damage):
    one = cache(tmp_path)
    one.store(KEY, TENSORS)
    (path,) = stored_files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        for position in range(0, len(data), 5):
            changed = bytearray(data)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert one.load(KEY) is None
    elif damage == "folder":
        path.unlink()
        path.mkdir()
        assert one.load(KEY) is None
        return
    else:
        path.write_bytes({"cut": data[:-1], "empty": b"", "noise": os.urandom(len(data))}[damage])
    assert one.load(KEY) is None
    one.store(KEY, TENSORS)
    assert one.load(KEY) is not None


def test_concurrent_writers_and_readers_see_whole_entries(tmp_path):
    seen, problems = [], []

    def work():
        own = cache(tmp_path)
        try:
            for _ in range(20):
                own.store(KEY, TENSORS)
                seen.append(own.load(KEY))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and len(seen) == 80
    assert all(found is not None and torch.equal(found["mean"], TENSORS["mean"]) for found in seen)
    assert len(stored_files(tmp_path)) == 1, "nothing is left beside"


class TestTrim:
    @staticmethod
    def fill(folder, count=4):
        """Entries last used one second apart, the first the longest ago. Gives one entry's size."""
        one = cache(folder)
        for k in range(count):
            one.store(f"{k:02d}" * 32, TENSORS)
        for path in stored_files(folder):
            age = 1_000_000_000 + int(path.name[:2])
            os.utime(path, (age, age))
        return stored_files(folder)[0].stat().st_size

    @staticmethod
    def left(folder):
        return [path.name[:2] for path in stored_files(folder)]

    def test_removes_what_was_not_used_for_longest(self, tmp_path):
        size = self.fill(tmp_path)
        own = cache(tmp_path, max_bytes=3 * size)
        assert own.load("00" * 32) is not None  # used now
        own.store("99" * 32, TENSORS)
        own.trim()
        assert self.left(tmp_path) == ["00", "03", "99"]

    def test_counts_all_jobs_entries(self, tmp_path):
        size = self.fill(tmp_path)
        own = cache(tmp_path, max_bytes=2 * size, device="another")
        own.store("99" * 32, TENSORS)
        own.trim()
        assert sorted(self.left(tmp_path)) == ["03", "99"]

    def test_leaves_alone_what_fits_and_who_stored_nothing(self, tmp_path):
        size = self.fill(tmp_path)
        fits, tight = cache(tmp_path, max_bytes=5 * size), cache(tmp_path, max_bytes=1)
        fits.store("99" * 32, TENSORS)
        fits.trim()
        tight.trim()
        assert len(self.left(tmp_path)) == 5

    def test_looks_again_only_when_the_room_that_it_found_is_filled(self, tmp_path, monkeypatch):
        size = self.fill(tmp_path)
        own, looks = cache(tmp_path, max_bytes=6 * size), []
        look = cache_module.cached_files
        monkeypatch.setattr(cache_module, "cached_files", lambda folder: looks.append(1) or look(folder))
        found = []
        for k in range(5, 10):  # 4 are there, and there is room for 6
            own.store(f"{k:02d}" * 32, TENSORS)
            own.trim()
            found.append((len(looks), len(self.left(tmp_path))))
        assert found == [(1, 5), (1, 6), (2, 6), (3, 6), (4, 6)]

    def test_a_disk_that_fails_does_not_cost_the_other_jobs_their_entries(self, tmp_path, monkeypatch):
        self.fill(tmp_path)
        own = cache(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", refuse(errno.ENOSPC))
            own.store("99" * 32, TENSORS)
        own.trim()
        assert self.left(tmp_path) == ["00", "01", "02", "03"]

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
    def test_entries_that_cannot_be_removed_do_not_end_the_job(self, tmp_path, monkeypatch, number):
        size = self.fill(tmp_path)
        own = cache(tmp_path, max_bytes=size)
        own.store("99" * 32, TENSORS)
        monkeypatch.setattr(Path, "unlink", refuse(number))
        own.trim()

    def test_files_of_others_beside_it_stay(self, tmp_path):
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / "archive").write_bytes(b"x" * 10_000)
        (tmp_path / "encoded").mkdir()
        (tmp_path / "encoded" / "link").symlink_to("../downloads")
        own = cache(tmp_path, max_bytes=1)
        own.store(KEY, TENSORS)
        own.trim()
        assert [path.name for path in stored_files(tmp_path)] == ["archive"]

    def test_a_link_in_the_folders_place_costs_nobody_a_file(self, tmp_path):
        """Whoever may write to the cache must not have the job remove what is elsewhere."""
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis").write_bytes(b"x" * 10_000)
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "encoded").symlink_to(tmp_path / "home")
        own = cache(tmp_path / "cache", max_bytes=1)
        own.store(KEY, TENSORS)
        own.trim()
        assert [path.name for path in stored_files(tmp_path / "home")] == ["thesis"]


def refuse(number):
    def operation(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return operation


class TestDisk:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
    @pytest.mark.parametrize("operation", ["mkdir", "write_bytes", "replace"])
    def test_storing_fails_silently_and_once(self, tmp_path, monkeypatch, number, operation):
        own = cache(tmp_path)
        calls = []

        def failing(*arguments, **options):
            calls.append(operation)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, operation, failing)
        own.store(KEY, TENSORS)
        own.store(OTHER, TENSORS)
        assert own.load(KEY) is None and len(calls) == 1
        assert stored_files(tmp_path) == []

    @pytest.mark.parametrize("level", ["encoded", "cache"])
    def test_a_file_in_the_folders_place(self, tmp_path, level):
        (tmp_path / "cache").mkdir()
        if level == "cache":
            (tmp_path / "cache").rmdir()
            (tmp_path / "cache").write_text("")
        else:
            (tmp_path / "cache" / "encoded").write_text("")
        own = cache(tmp_path / "cache")
        own.store(KEY, TENSORS)
        assert own.load(KEY) is None
        own.trim()

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
    def test_an_entry_that_cannot_be_read_is_a_miss(self, tmp_path, monkeypatch, number):
        own = cache(tmp_path)
        own.store(KEY, TENSORS)
        monkeypatch.setattr(Path, "read_bytes", refuse(number))
        assert own.load(KEY) is None

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM])
    def test_a_cache_that_is_read_only_still_hits(self, tmp_path, monkeypatch, number):
        """Mounted read-only, or another user's: the time of use cannot be noted, the tensors are there."""
        own = cache(tmp_path)
        own.store(KEY, TENSORS)
        monkeypatch.setattr(os, "utime", refuse(number))
        assert own.load(KEY) is not None

    def test_no_bytes_allowed_means_no_cache(self, tmp_path):
        own = cache(tmp_path, max_bytes=0)
        own.store(KEY, TENSORS)
        own.trim()
        assert list(tmp_path.iterdir()) == []
