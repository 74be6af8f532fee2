"""Which shards stay in the cache: never more than its bound allows, counted by all processes together."""

import fcntl
import os

import pytest

from engine.core.files.retention import hold, prune
from engine.data.fetch.shards.room import Room


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "datasets" / "shards").mkdir(parents=True)
    (tmp_path / "datasets" / "url").mkdir()
    return tmp_path


def key(number):
    return f"{number:064x}"


def offered(room, cache, number, size=100):
    part = cache / "datasets" / "url" / f"{key(number)}.part"
    part.write_bytes(bytes(size))
    with part.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not room.keep(part, cache / "datasets" / "shards" / f"{key(number)}.tar"):
            part.unlink()
            return False
    return True


def used(cache):
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and path.name != "room")


def test_without_a_bound_all_stay(cache):
    room = Room(cache, None)
    assert all(offered(room, cache, number) for number in range(5))


@pytest.mark.parametrize("bound", [0, 99, 100, 450, 1000])
def test_as_many_stay_as_fit_and_none_gives_way_to_another(cache, bound):
    room = Room(cache, bound)
    kept = [offered(room, cache, number) for number in range(12)]
    assert used(cache) <= bound
    assert sum(kept) == min(bound // 100, 12)
    assert kept == sorted(kept, reverse=True)


def test_what_was_used_before_gives_way(cache):
    folder = cache / "notes"
    folder.mkdir()
    for number in range(10):
        path = folder / key(number)
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    room = Room(cache, 1000)
    kept = [offered(room, cache, number) for number in range(20)]
    assert used(cache) <= 1000
    assert sum(kept) == 10
    assert not list(folder.iterdir())


def test_shards_of_an_earlier_job_give_way(cache):
    for number in range(100, 110):
        path = cache / "datasets" / "shards" / f"{key(number)}.tar"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    room = Room(cache, 1000)
    kept = [offered(room, cache, number) for number in range(10)]
    assert used(cache) <= 1000
    assert sum(kept) >= 8


def test_processes_count_together(cache):
    rooms = [Room(cache, 1000) for _ in range(3)]
    kept = [offered(rooms[number % 3], cache, number) for number in range(30)]
    assert used(cache) <= 1000
    assert sum(kept) >= 8


def test_indices_that_are_in_use_count_too(cache):
    (cache / "tables").mkdir()
    room = Room(cache, 1000)
    for number in range(20):
        index = cache / "tables" / f"{key(number)}.arrow"
        hold(cache, index)
        index.write_bytes(bytes(50))
        room.note(50)
        if not offered(room, cache, number):
            break
    assert number == 6
    assert used(cache) <= 1000 + 50


def test_a_count_that_is_damaged_is_made_again(cache):
    assert offered(Room(cache, 250), cache, 0)
    (cache / "datasets" / "shards" / "room").write_bytes(b"\xff" * 10)
    room = Room(cache, 250)
    assert offered(room, cache, 1)
    (cache / "datasets" / "shards" / "room").write_bytes(b"")
    offered(room, cache, 2)
    assert used(cache) == 200


def test_shards_are_pruned_like_anything_but_not_while_they_are_written(cache):
    room = Room(cache, 1000)
    for number in range(4):
        offered(room, cache, number)
    with (cache / "datasets" / "url" / f"{key(0)}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = prune(cache, 0)
    assert done.removed == {"shard": 3}
    assert done.num_in_use == 1
