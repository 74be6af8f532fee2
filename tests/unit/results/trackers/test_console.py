"""The training on the console."""

import contextlib
import re

import pytest

from engine.core import console as core_console
from engine.results.history import StepReport
from engine.results.outcome import Clock
from engine.results.trackers.console import ConsoleTracker
from engine.results.trackers.tracker import TrackedTraining
from engine.task.plan.steps import StepRange

STEP_RANGE = StepRange(num_rows=10, batch_size=2, micro_batches=3, start_step=4, stop_step=6, max_steps=20)


@pytest.mark.parametrize("noun", ["image", "clip"])
def test_a_line_has_the_steps_numbers(capsys, monkeypatch, noun):
    now = [100.0]
    monkeypatch.setattr(core_console.time, "monotonic", lambda: now[0])
    clock = Clock()
    training = TrackedTraining(step_range=STEP_RANGE, step=4, clock=clock, log=None, noun=noun)
    with contextlib.closing(ConsoleTracker(training)) as tracker:
        now[0] = 500.0  # the first images were encoded
        with clock.phase("train"):
            for step in (5, 6):
                now[0] += 3.0
                tracker.step(StepReport(step, 0.25, 1e-4, 2.0))
    (line,) = capsys.readouterr().err.splitlines()
    said = rf"\d\d:\d\d:\d\d training: 6/6 steps, loss 0\.2500, lr 1\.00e-04, 2\.0 {noun}s/s"
    assert re.match(said, line)


def test_the_loss_is_the_mean_since_the_last_line(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(core_console.time, "monotonic", lambda: now[0])
    clock = Clock()
    training = TrackedTraining(step_range=STEP_RANGE.ended_at(10), step=4, clock=clock, log=None)
    with contextlib.closing(ConsoleTracker(training)) as tracker, clock.phase("train"):
        for step, loss in ((5, 1.0), (6, 3.0), (7, 5.0), (8, 7.0)):
            now[0] += 6.0
            tracker.step(StepReport(step, loss, 1e-4, 2.0))
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"(\d+)/10 steps, loss ([0-9.]+)", line).groups() for line in lines] == [
        ("6", "2.0000"),
        ("8", "6.0000"),
    ]


@pytest.mark.parametrize("name", ["evaluation", "images"])
def test_events_are_said_elsewhere(capsys, name):
    training = TrackedTraining(step_range=STEP_RANGE, step=4, clock=Clock(), log=None)
    with contextlib.closing(ConsoleTracker(training)) as tracker:
        tracker.event(name)
    assert capsys.readouterr().err == ""
