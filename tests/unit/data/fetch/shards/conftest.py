"""A server of shards, and a cache of them."""

import pytest

from engine.data.fetch.shards.shard_cache import ShardCache
from tests.support.shard_server import HASTY, OPEN, serving_shards


@pytest.fixture
def server():
    with serving_shards({}) as running:
        yield running


@pytest.fixture
def lines():
    return []


@pytest.fixture
def shard_cache(tmp_path, lines):
    return ShardCache(tmp_path / "cache", limits=OPEN, policy=HASTY, report=lines.append)
