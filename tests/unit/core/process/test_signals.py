"""SIGTERM and SIGINT stop the job where nothing is lost."""

import os
import signal

import pytest

from engine.core.errors import Interrupted, PeerError
from engine.core.process.signals import Stop


@pytest.fixture
def stop():
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
class TestCodes:
    def test_outside_it_raises_at_once(self, stop, number, code, name):
        with pytest.raises(Interrupted, match=f"stopped by {name}; the same command continues") as caught:
            send(number)
        assert caught.value.code == code

    def test_inside_it_waits_for_the_check(self, stop, number, code, name):
        done = []
        with pytest.raises(Interrupted) as caught, stop.deferred():
            send(number)
            done.append("the step")
            stop.check(lambda: done.append("saved"))
            done.append("too far")
        assert done == ["the step", "saved"] and caught.value.code == code


def test_without_a_signal_nothing_happens(stop):
    with stop.deferred():
        stop.check(lambda: pytest.fail("saved"))


def test_it_waits_no_longer_than_the_block(stop):
    done = []
    with pytest.raises(Interrupted):
        with stop.deferred():
            send()
            done.append("to the end")
        done.append("too far")
    assert done == ["to the end"]


def test_a_second_signal_does_not_wait(stop):
    done = []
    with pytest.raises(Interrupted) as caught, stop.deferred():
        send(signal.SIGTERM)
        done.append("one")
        send(signal.SIGINT)
        done.append("two")
    assert done == ["one"] and caught.value.code == 130


def test_the_blocks_own_failure_comes_first(stop):
    with pytest.raises(KeyError), stop.deferred():
        send()
        raise KeyError


def test_after_the_block_it_raises_at_once_again(stop):
    with stop.deferred():
        pass
    with pytest.raises(Interrupted):
        send()


def test_no_broad_except_of_a_library_swallows_it(stop):
    with pytest.raises(Interrupted):
        try:
            send()
        except Exception:
            pytest.fail("swallowed")


def test_once_it_has_raised_more_signals_change_nothing(stop):
    """Whoever repeats a signal must not break what the first one set going: result.json, the last message."""
    with pytest.raises(Interrupted):
        send()
    for _ in range(3):
        send()


def test_a_job_that_is_as_good_as_done_is_not_stopped(stop):
    stop.ignore()
    send()
    with stop.deferred():
        send(signal.SIGINT)


def test_a_request_to_finish_ends_nothing_by_itself(stop):
    assert not stop.is_finish_requested
    with stop.deferred():
        send(signal.SIGUSR1)
        stop.check(lambda: pytest.fail("saved"))
    assert stop.is_finish_requested and not stop.signum


class TestPeers:
    """Another process of the job has ended: as a signal would, but with that process's own reason."""

    ERROR = PeerError(3, "dataset", "gone", origin=1)

    def test_outside_it_raises_at_once(self, stop):
        with pytest.raises(PeerError, match="gone"):
            stop.peer_ended(self.ERROR)

    def test_inside_it_waits_for_the_check_and_ends_no_deferral(self, stop):
        """The others end because of the same signal: their news must not count as its repetition."""
        done = []
        with pytest.raises(PeerError), stop.deferred():
            send()
            stop.peer_ended(self.ERROR)
            done.append("the step")
            stop.check(lambda: done.append("saved"))
        assert done == ["the step", "saved"]

    def test_the_reason_is_the_peers_own_not_the_signal_that_follows(self, stop):
        with pytest.raises(PeerError), stop.deferred():
            stop.peer_ended(self.ERROR)
            send()

    def test_several_stop_for_the_signal_that_they_agreed_on(self, stop):
        with pytest.raises(Interrupted) as caught, stop.deferred():
            send()
            stop.check(lambda: pytest.fail("saved"), signum=0)
            stop.check(lambda: None, signum=signal.SIGTERM)
        assert caught.value.code == 143

    def test_a_job_that_is_as_good_as_done_is_not_stopped(self, stop):
        stop.ignore()
        stop.peer_ended(self.ERROR)
