"""A scripted server, a clock that only sleeping moves, and a download under both."""

import pytest

from engine.data.fetch import Policy, fetch_dataset
from tests.support.origin_server import OPEN, Server


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def get(server, clock, tmp_path):
    def get(url=None, limits=OPEN, **policy):
        lines = []
        rules = Policy(clock=lambda: clock.now, sleep=clock.sleep, stall_seconds=2, **policy)
        folder = fetch_dataset(url or server.url, tmp_path / "cache", limits=limits, policy=rules, report=lines.append)
        assert all(isinstance(line, str) and "\n" not in line for line in lines)
        return folder

    return get
