"""Shards on the disk: downloaded once, by one process at a time, resumed, and at most one beyond the bound."""

import json
import shutil
import threading

import pytest

from engine.core.errors import DatasetError, OutputError
from engine.core.limits import Limits
from engine.data.fetch.shards.shard_cache import ShardCache
from tests.support.shard_server import HASTY
from tests.support.shards import shard

BODY = shard(0, 3)


@pytest.fixture
def url(server):
    server.files["a.tar"] = BODY
    return server.url("a.tar")


def test_downloaded_once_and_kept(server, shard_cache, url):
    for _ in range(2):
        with shard_cache.whole(url) as path:
            assert path.read_bytes() == BODY
    assert server.whole() == ["/a.tar"]
    assert shard_cache.path(url).read_bytes() == BODY
    facts = shard_cache.facts(url)
    assert facts is not None
    assert (facts.size, facts.has_ranges) == (len(BODY), True)


def test_each_server_is_asked_for_a_part_once(server, shard_cache, url):
    for name in ("b.tar", "c.tar"):
        server.files[name] = BODY
    server.ranges = False
    for name in ("a.tar", "b.tar", "c.tar"):
        with shard_cache.whole(server.url(name)):
            pass
        facts = shard_cache.facts(server.url(name))
        assert facts is not None
        assert not facts.has_ranges
    assert len(server.parts()) == 1


def test_threads_that_want_the_same_shard_wait_for_each_other(server, tmp_path, url):
    def want():
        cache = ShardCache(
            tmp_path / "cache", limits=Limits(allow_private_urls=True), policy=HASTY, report=lambda line: None
        )
        with cache.whole(url) as path:
            found.append(path.read_bytes() == BODY)

    found = []
    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6
    assert server.whole() == ["/a.tar"]


def test_what_a_dead_process_has_fetched_is_not_fetched_again(server, shard_cache, url):
    """Whatever ends the process while the shard is indexed."""
    with pytest.raises(KeyboardInterrupt), shard_cache.whole(url):
        raise KeyboardInterrupt
    assert not shard_cache.path(url).exists()
    with shard_cache.whole(url) as path:
        assert path.read_bytes() == BODY
    assert server.whole() == ["/a.tar"]


def test_a_shard_that_is_refused_is_fetched_anew(server, shard_cache, url):
    with pytest.raises(DatasetError), shard_cache.whole(url):
        raise DatasetError("it is damaged")
    with shard_cache.whole(url):
        pass
    assert server.whole() == ["/a.tar"] * 2


def test_nothing_stays_of_a_shard_that_is_too_large(server, shard_cache, url):
    def answer(handler):
        handler.send_response_only(200)  # without a length
        handler.end_headers()
        handler.wfile.write(BODY)
        return True

    server.answer = answer
    with pytest.raises(DatasetError, match="larger than 1,000 bytes"), shard_cache.whole(url, most_bytes=1000):
        pass
    folder = shard_cache.path(url).parent.parent
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize("max_bytes", [None, 0])
def test_a_disk_without_space_is_said_with_advice(tmp_path, url, monkeypatch, max_bytes):
    limits = Limits(allow_private_urls=True, max_cache_bytes=max_bytes)
    cache = ShardCache(tmp_path / "cache", limits=limits, policy=HASTY, report=lambda line: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(OutputError, match="free some space") as caught, cache.whole(url):
        pass
    assert ("set MAX_CACHE_BYTES" in str(caught.value)) == (max_bytes is None)


def test_damaged_facts_count_as_none(server, shard_cache, url):
    with shard_cache.whole(url):
        pass
    facts = json.loads(shard_cache.facts_file(url).read_bytes())
    odd = [json.dumps(facts | {name: [value]}).encode() for name, value in facts.items()]
    for content in (b"", b"{}", b"[]", b"\xff", b'{"size": 1}', *odd):
        shard_cache.facts_file(url).write_bytes(content)
        assert shard_cache.facts(url) is None
