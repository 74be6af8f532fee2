"""Expressions that would keep a machine busy for minutes are given up, whoever compiles them."""

import json
import re
import signal
import time

import pytest

from engine.core import patterns
from engine.core.errors import TaskError
from engine.task.task import parse_task
from engine.training.methods.lora.targets import match_targets

SLOW = "(?i:" + r"[\0-\U0010ffff]" * 2000 + ")?.*to_q"
"""32 s to compile, as it was found."""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    patterns.compiled.cache_clear()
    yield
    patterns.compiled.cache_clear()


def test_compiling_is_given_up_and_not_tried_again():
    started = time.process_time()
    for _ in range(3):
        found = patterns.compiled(SLOW)
        assert found == "takes more than 0.2 s to compile: write it shorter, or list the names"
    assert time.process_time() - started < 1
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_task_with_one_is_refused():
    text = json.dumps(
        {
            "model": {"name": "m"},
            "dataset": {"name": "d"},
            "validation": {},
            "train_args": {},
            "lora": {"target_modules": SLOW},
        }
    )
    with pytest.raises(TaskError, match=r"lora\.target_modules: got .*: it takes more than 0\.2 s to compile"):
        parse_task(text.encode(), source="t")


def test_so_are_layers_to_be_found_by_one():
    with pytest.raises(TaskError, match=r"takes more than 0\.2 s to compile"):
        match_targets({"to_q": None}, SLOW)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_that_is_reached_in_a_finalizer_holds_all_the_same():
    def work(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    class Finalized:
        def __del__(self):
            work(0.3)

    with pytest.raises(patterns.TakesTooLongError), patterns.limited(0.1):
        Finalized()
        work(3)


def test_an_ordinary_one_compiles():
    found = patterns.compiled(r".*attn2\.to_[kqv]")
    assert isinstance(found, re.Pattern) and patterns.Matcher(found)("a.attn2.to_q")


@pytest.mark.parametrize("text", ["(", "a{99999999999}", "(" * 5000 + ")" * 5000])
def test_what_is_none_says_why(text):
    assert patterns.compiled(text).startswith("is not a regular expression: ")
