"""Members fetched ahead: by many threads, each once, within the memory; errors where the member is asked for."""

import threading
import time

import pytest

from engine.core.errors import DatasetError, Interrupted
from engine.data.fetch.shards.read_ahead import Place, ReadAhead


class Source:
    """Fetches members, and records each call."""

    def __init__(self):
        self.calls = []
        self.most_bytes = self._bytes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def fetch(self, places):
        with self.lock:
            self.calls.append(list(places))
        assert self.gate.wait(10)
        if any(place.offset == 666 for place in places):
            raise DatasetError("gone")
        return [data_of(place) for place in places]


def data_of(place):
    return f"{place.shard}/{place.offset}".encode()


def places(count, *, shard=0, size=10):
    return [Place(shard, offset, size) for offset in range(count)]


def waited_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def source():
    return Source()


def test_each_is_fetched_once_and_read_as_often_as_announced(source):
    ahead = ReadAhead(source.fetch, lambda shard: False)
    ahead.announce([*places(100), *places(100)])
    for place in [*places(100), *reversed(places(100))]:
        assert ahead.take(place) == data_of(place)
    assert sorted(call[0] for call in source.calls) == places(100)
    ahead.take(Place(0, 0, 10))  # a third time: no longer in memory
    assert len(source.calls) == 101


def test_at_most_16_at_once(source):
    source.gate.clear()
    ahead = ReadAhead(source.fetch, lambda shard: False)
    ahead.announce(places(100))
    ahead.start()
    waited_for(lambda: len(source.calls) == 16)
    time.sleep(0.05)
    assert len(source.calls) == 16
    source.gate.set()
    assert [ahead.take(place) for place in places(100)] == [data_of(place) for place in places(100)]


def test_what_does_not_fit_is_fetched_when_asked_for(source):
    ahead = ReadAhead(source.fetch, lambda shard: False, max_bytes=35)
    ahead.announce(places(10))
    ahead.start()
    waited_for(lambda: len(source.calls) == 3)
    time.sleep(0.05)
    assert len(source.calls) == 3
    assert ahead.take(Place(0, 9, 10)) == b"0/9"
    assert [ahead.take(place) for place in places(9)] == [data_of(place) for place in places(9)]
    assert len(source.calls) == 10


def test_a_member_larger_than_the_memory(source):
    ahead = ReadAhead(source.fetch, lambda shard: False, max_bytes=5)
    ahead.announce(places(3))
    assert [ahead.take(place) for place in places(3)] == [data_of(place) for place in places(3)]
    assert len(source.calls) == 3


def test_a_new_window_forgets_the_old_one(source):
    ahead = ReadAhead(source.fetch, lambda shard: False, max_bytes=100)
    ahead.announce(places(10))
    ahead.start()
    waited_for(lambda: len(source.calls) == 10)
    source.gate.clear()
    ahead.clear(lambda: None)
    source.gate.set()
    ahead.announce(places(10, shard=1))
    ahead.start()
    waited_for(lambda: len(source.calls) == 20)
    assert [ahead.take(place) for place in places(10, shard=1)] == [data_of(p) for p in places(10, shard=1)]
    assert len(source.calls) == 20


def test_a_window_that_ends_while_its_members_are_fetched(source):
    source.gate.clear()
    ahead = ReadAhead(source.fetch, lambda shard: False, max_bytes=100)
    ahead.announce(places(10))
    ahead.start()
    waited_for(lambda: len(source.calls) == 10)
    ahead.clear(lambda: None)
    ahead.announce(places(10, shard=1))
    source.gate.set()
    assert [ahead.take(place) for place in places(10, shard=1)] == [data_of(p) for p in places(10, shard=1)]


def test_a_job_is_stopped_while_a_server_is_waited_for(source):
    ahead = ReadAhead(source.fetch, lambda shard: False)

    def check_stop():
        raise Interrupted(15, "stopped")

    ahead.clear(check_stop)
    source.gate.clear()
    ahead.announce(places(1))
    for place in (Place(0, 0, 10), Place(1, 0, 10)):  # announced, and not
        with pytest.raises(Interrupted):
            ahead.take(place)
    source.gate.set()


def test_errors_are_raised_where_the_member_is_asked_for(source):
    ahead = ReadAhead(source.fetch, lambda shard: False)
    ahead.announce([Place(0, 1, 10), Place(0, 666, 10), Place(0, 2, 10)])
    assert ahead.take(Place(0, 1, 10)) == b"0/1"
    with pytest.raises(DatasetError, match="gone"):
        ahead.take(Place(0, 666, 10))
    assert ahead.take(Place(0, 2, 10)) == b"0/2"


def test_members_of_a_shard_are_fetched_together_where_only_whole_files_are_sent(source):
    ahead = ReadAhead(source.fetch, lambda shard: shard == 1)
    wanted = [place for pair in zip(places(20), places(20, shard=1), strict=True) for place in pair]
    ahead.announce(wanted)
    assert [ahead.take(place) for place in wanted] == [data_of(place) for place in wanted]
    assert sorted(len(call) for call in source.calls) == [1] * 20 + [20]


@pytest.mark.parametrize("connections", [1, 16])
def test_whole_shards_come_again_only_for_what_does_not_fit(source, connections):
    """Three shards, of which members are asked for in turns; half of the memory is filled at once."""
    ahead = ReadAhead(source.fetch, lambda shard: True, max_bytes=300, connections=connections)
    wanted = [Place(shard, offset, 10) for offset in range(50) for shard in range(3)]
    ahead.announce(wanted)
    assert [ahead.take(place) for place in wanted] == [data_of(place) for place in wanted]
    assert sorted(place for call in source.calls for place in call) == sorted(wanted)
    assert len(source.calls) <= 3 * 10
