"""The training on the console."""

import contextlib

import pytest

from engine.core import console as core_console
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.trackers.console import ConsoleTracker
from engine.results.trackers.tracker import TrackedTraining
from engine.task.plan.steps import StepRange

STEP_RANGE = StepRange(num_rows=10, batch_size=2, micro_batches=3, start_step=4, stop_step=6, max_steps=20)


def test_a_line_has_the_steps_numbers(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(core_console.time, "monotonic", lambda: now[0])
    clock = Clock()
    training = TrackedTraining(step_range=STEP_RANGE, step=4, clock=clock, log=None)
    with contextlib.closing(ConsoleTracker(training)) as tracker:
        now[0] = 500.0  # the first images were encoded
        with clock.phase("train"):
            for step in (5, 6):
                now[0] += 3.0
                tracker.step(StepReport(step, 0.25, 1e-4, 2.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training: 6/6 steps, loss 0.2500, lr 1.00e-04, 2.0 images/s")


@pytest.mark.parametrize("name", ["evaluation", "images"])
def test_events_are_said_elsewhere(capsys, name):
    training = TrackedTraining(step_range=STEP_RANGE, step=4, clock=Clock(), log=None)
    with contextlib.closing(ConsoleTracker(training)) as tracker:
        tracker.event(name)
    assert capsys.readouterr().err == ""
