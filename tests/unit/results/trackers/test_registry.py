"""Every tracker is told of everything, and none can end a training."""

import pytest

from engine.core import console
from engine.core.errors import Interrupted
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.progress_log import ProgressLog
from engine.results.trackers import registry
from engine.results.trackers.registry import TRACKERS, tracked
from engine.results.trackers.tracker import TrackedTraining
from engine.task.plan.steps import StepRange
from tests.support.toy_trackers import Failing, Recorder

STEP_RANGE = StepRange(num_rows=10, batch_size=2, micro_batches=3, start_step=4, stop_step=14, max_steps=20)
STEP = StepReport(5, 0.25, 1e-4, None)


@pytest.fixture
def training(tmp_path):
    with ProgressLog(tmp_path / "progress.jsonl", step=int) as log:
        log.begin(may_write=True)
        log.claimed(is_fresh=False)
        yield TrackedTraining(step_range=STEP_RANGE, step=4, clock=Clock(), log=log)


@pytest.fixture
def opened(monkeypatch):
    """The trackers that were opened, the failing one first."""
    found = []

    def opener(kind):
        def open_tracker(training):
            found.append(kind(training))
            return found[-1]

        return open_tracker

    monkeypatch.setattr(registry, "TRACKERS", {"failing": opener(Failing), "recorder": opener(Recorder)})
    monkeypatch.setattr(console._log, "notes", [])
    return found


def tell(trackers):
    trackers.step(STEP)
    trackers.event("evaluation", heldout_loss=None)
    trackers.event("lora")
    trackers.event("images")


@pytest.mark.parametrize("name", TRACKERS)
def test_every_row_takes_a_training(training, name, capsys):
    tracker = TRACKERS[name](training)
    with training.clock.phase("train"):
        tell(tracker)
    tracker.close()
    assert console.NOTE not in capsys.readouterr().err


def test_all_are_told_in_order_whatever_others_raise(training, opened):
    with tracked(training, is_first=True) as trackers:
        tell(trackers)
    failing, recorder = opened
    events = [("evaluation", {"heldout_loss": None}), ("lora", {}), ("images", {})]
    assert recorder.told == [("open", 4, 14), STEP, *events, "close"]
    assert failing.num_told == 5
    (note,) = console.notes()
    assert note == "the tracker failing failed (no route to the tracking server); the training is not affected"


def test_one_that_cannot_be_opened_is_a_warning(training, opened, monkeypatch):
    def refuse(training):
        raise RuntimeError("no API key")

    monkeypatch.setitem(registry.TRACKERS, "refused", refuse)
    with tracked(training, is_first=True) as trackers:
        tell(trackers)
    assert any("refused failed (no API key)" in note for note in console.notes())
    assert opened[1].told[1] == STEP


def test_only_the_first_process_has_trackers(training, opened):
    with tracked(training, is_first=False) as trackers:
        tell(trackers)
    assert opened == []


def test_they_are_closed_after_a_failure(training, opened):
    with pytest.raises(ZeroDivisionError), tracked(training, is_first=True):
        raise ZeroDivisionError
    assert opened[1].told[-1] == "close"


def test_a_signal_is_no_trackers_failure(training, monkeypatch):
    class Stopped(Recorder):
        def step(self, report):
            raise Interrupted(15, "stopped")

    monkeypatch.setattr(registry, "TRACKERS", {"stopped": Stopped})
    with pytest.raises(Interrupted), tracked(training, is_first=True) as trackers:
        trackers.step(STEP)
