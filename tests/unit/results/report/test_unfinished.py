"""The report of a task that has no result yet."""

import pytest

from engine.results.report import render
from engine.results.report.unfinished import Unfinished
from tests.support.reports import Page, png, sample

TIME = "2026-11-30T08:00:00.000Z"


def page_of(status, more="", **changes):
    changes = {"checkpoint_digest": None, **changes}
    return Page(render(sample(unfinished=Unfinished(status, TIME, more), **changes)))


def test_a_running_one_says_so_and_is_looked_at_again():
    page = page_of("running")
    assert "Running: step 60 of 100" in page.text and f"Running, as of {TIME}." in page.text
    assert [tag for tag in page.named("meta") if tag.get("http-equiv") == "refresh"]
    assert "Checkpoint" not in page.text and "The latest images so far." in page.text


@pytest.mark.parametrize(
    "status, more, text",
    [
        ("interrupted", "entrypoint.py --task <t>.json", "goes on from here: entrypoint.py --task <t>.json"),
        ("failed", "the disk is full", "It ended without a result: the disk is full"),
    ],
)
def test_one_that_ended_says_how_and_is_not_looked_at_again(status, more, text):
    page = page_of(status, more)
    assert text in page.text and f"{status.capitalize()}: step 60 of 100" in page.text
    assert not [tag for tag in page.named("meta") if tag.get("http-equiv") == "refresh"]


def test_before_the_first_image_it_does_not_say_that_the_task_asks_for_none():
    text = page_of("running", pictures=[]).text
    assert "None so far." in text and "The task asks for none" not in text


def test_a_picture_without_its_baseline():
    from engine.results.report import Picture

    page = page_of("running", pictures=[Picture(prompt="a", seed=1, png=png(), without_png=None)])
    assert "not drawn" in page.text and len(page.named("img")) == 1


def test_a_result_has_nothing_of_it():
    page = render(sample())
    assert "refresh" not in page and "as of" not in page
