"""What is said of a running job, and how."""

import io
import json
import os
import re
import time
from types import SimpleNamespace

import pytest

from engine.core import console
from engine.core.console import Meter, Phases, begin_log, choose_format, introduce, keep_silent, notes, say, say_error
from engine.core.errors import TaskError

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(autouse=True)
def _a_log_of_its_own(monkeypatch):
    monkeypatch.setattr(console, "_log", console._Log())


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def said(capsys):
    """The lines without the time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in capsys.readouterr().err.splitlines()]


class TestLines:
    def test_the_log_begins_with_what_is_known_by_then(self, capsys):
        known = {"task": None}
        introduce(lambda: (f"the program, task {known['task']}", known))
        say("a line")
        assert said(capsys) == []
        known["task"] = 5
        assert begin_log() and not begin_log()
        say("another")
        assert said(capsys) == ["the program, task 5", "a line", "another"]

    def test_a_line_waits_for_its_beginning_a_moment_alone(self, capsys, monkeypatch):
        monkeypatch.setattr(console, "_INTRODUCTION_SECONDS", 0.05)
        introduce(lambda: ("the program", {}))
        say("downloading for hours")
        deadline = time.monotonic() + 20
        while not (found := said(capsys)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert found == ["the program", "downloading for hours"] and not begin_log()

    def test_an_error_may_be_the_first_line_and_silence_does_not_swallow_it(self, capsys):
        introduce(lambda: ("the program", {}))
        keep_silent()
        say("not heard")
        assert said(capsys) == []
        say_error("why", code=2, kind="task")
        assert said(capsys) == ["the program", "error: why"]

    def test_json_lines(self, capsys):
        choose_format({"LOG_FORMAT": "json"})
        introduce(lambda: ("the program", {"version": "1"}))
        say("a line\nof two")
        say("note: heed this")
        say_error("why", code=2, kind="task")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            console.say_traceback()
        lines = [json.loads(line) for line in said(capsys)]
        assert all(TIME.fullmatch(line.pop("time")) for line in lines)
        assert "ZeroDivisionError" in lines.pop()["message"]
        assert lines == [
            {"level": "info", "message": "the program", "version": "1"},
            {"level": "info", "message": "a line\nof two"},
            {"level": "warning", "message": "note: heed this"},
            {"level": "error", "message": "error: why", "code": 2, "kind": "task"},
        ]

    @pytest.mark.parametrize("given", [{}, {"LOG_FORMAT": ""}, {"LOG_FORMAT": "text"}])
    def test_text_is_the_default(self, given, capsys):
        choose_format(given)
        say("a line")
        assert said(capsys) == ["a line"]

    def test_another_format_is_refused_by_name(self):
        with pytest.raises(TaskError, match="LOG_FORMAT is 'xml': expected text or json"):
            choose_format({"LOG_FORMAT": "xml"})

    def test_notes_are_remembered_once_each(self):
        for line in ("note: one", "a line", "note: two", "note: one"):
            say(line)
        assert notes() == ["one", "two"]


class TestMeter:
    def test_says_the_last_and_now_and_then_with_speed_and_time_left(self, capsys, now):
        meter = Meter("encoding", "images", 100)
        for done in range(1, 101):
            now[0] += 1.7
            meter.update(done, "a note")
        meter.close()
        lines = said(capsys)
        assert lines[0] == "encoding: 6/100 images, a note, 1.7 s/image, about 2 min 40 s left"
        assert lines[-1] == "encoding: 100/100 images, a note, 1.7 s/image"
        assert len(lines) == 17

    def test_what_was_done_before_is_no_part_of_the_pace(self, capsys, now):
        meter = Meter("training", "steps", 1000, start=900)
        now[0] = 20.0
        meter.update(940)
        assert said(capsys) == ["training: 940/1000 steps, 2.0 steps/s, about 30 s left"]

    def test_the_time_counts_from_its_beginning(self, capsys, now):
        meter = Meter("training", "steps", 4, begins=False)
        now[0] = 500.0  # the first images are encoded
        meter.begin()
        meter.begin()
        now[0] = 520.0
        meter.update(2)
        assert said(capsys) == ["training: 2/4 steps, 10.0 s/step, about 20 s left"]

    def test_counts_items_that_are_passed_over_too(self, capsys):
        for number in Meter("encoding", "images", 3).over(range(3)):
            if number:
                continue
        assert [line.partition(",")[0] for line in said(capsys)] == ["encoding: 3/3 images"]

    def test_json_has_the_numbers(self, capsys):
        choose_format({"LOG_FORMAT": "json"})
        Meter("encoding", "images", 3).update(3)
        line = json.loads(said(capsys)[0])
        assert {key: line[key] for key in ("what", "done", "total", "unit")} == {
            "what": "encoding", "done": 3, "total": 3, "unit": "images",
        }  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.fixture
def columns(monkeypatch):
    """Have the terminal so many columns."""

    def have(columns):
        monkeypatch.setattr(console.os, "get_terminal_size", lambda _: os.terminal_size((columns, 0)))

    have(100)
    return have


@pytest.fixture
def terminal(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(console, "sys", SimpleNamespace(stderr=terminal))  # pytest puts its own in sys again
    return terminal


class TestBar:
    def test_no_bar_where_nothing_is_to_be_done(self, terminal):
        for total, start in ((0, 0), (7, 7)):
            meter = Meter("encoding", "images", total, start=start)
            meter.close()
        assert list(Meter("encoding", "images", 0).over([])) == []
        assert terminal.getvalue() == ""

    def test_no_bar_before_it_begins(self, terminal):
        meter = Meter("training", "steps", 7, begins=False)
        assert terminal.getvalue() == ""
        meter.begin()
        assert "training:   0%" in terminal.getvalue() and "0/7" in terminal.getvalue()
        meter.close()

    def test_lines_where_the_terminal_has_no_width(self, terminal, columns):
        """Nobody has told it: tqdm would draw nothing at all."""
        columns(0)
        Meter("training", "steps", 7).update(7, "loss 0.5")
        assert re.fullmatch(r"\d\d:\d\d:\d\d training: 7/7 steps, loss 0\.5, .*\n", terminal.getvalue())

    def test_no_bar_in_a_json_log(self, terminal):
        choose_format({"LOG_FORMAT": "json"})
        Meter("training", "steps", 7).update(7)
        assert [json.loads(line)["done"] for line in terminal.getvalue().splitlines()] == [7]

    def test_one_at_a_time(self, terminal):
        """The outer one is off the screen while the inner one is there, and comes back."""
        outer, inner = Meter("training", "steps", 7), Meter("validation", "images", 2)
        shown = len(terminal.getvalue())
        assert terminal.getvalue().rpartition("training")[2].count("validation:   0%") == 1
        outer.update(1)
        outer._bar.refresh()
        assert "training" not in terminal.getvalue()[shown:]
        inner.update(2)
        inner.close()
        assert "training" in terminal.getvalue()[shown:] and "\n" not in terminal.getvalue()
        outer.close()
        assert console._log.bars == []

    def test_its_speed_reads_well(self, terminal):
        meter = Meter("training", "steps", 7)
        meter.update(7, "loss 0.5")
        last = terminal.getvalue().splitlines()[-1]
        assert re.search(r"7/7 \[00:0\d<00:00, [0-9.]+ steps/s, loss 0\.5\]", last), last

    @pytest.mark.parametrize(
        ("rate", "unit", "text"),
        [
            (4.23, "steps", "4.2 steps/s"),
            (1 / 3.36, "steps", "3.4 s/step"),
            (0.5, "images", "2.0 s/image"),
            (1.0, "crops", "1.0 crops/s"),
            (0.0, "steps", "? steps/s"),
        ],
    )
    def test_speed_text(self, rate, unit, text):
        assert console.speed_text(rate, unit) == text


def test_phases_before_the_first_step_are_named_once(capsys):
    phases = Phases()
    for name in ("start", "download", "load", "encode", "train", "encode", "validate"):
        phases.say(name)
    assert said(capsys) == [
        "importing the libraries",
        "finding the base model and the dataset",
        "loading the base model",
        "encoding the dataset",
    ]


def test_what_begins_after_the_first_step_is_not_named(capsys):
    phases = Phases()
    phases.say("train")
    phases.say("encode")
    assert said(capsys) == []
