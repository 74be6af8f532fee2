"""A report that reads the one before: the images and the times of a whole chain."""

import pytest

from engine.results.report import render
from engine.results.report.earlier import Earlier, read
from engine.results.report.pictures import Picture
from tests.support.reports import Page, png, sample, task_entry

FIRST = {"start_step": 0, "global_step": 40, "lineage": [task_entry(0, 40)], "checkpoint_digest": "ab" * 32}
KEY = "0123456789abcdef"


def drawn(**changes):
    values = {"prompt": "a", "seed": 1, "png": png(8, (9, 9, 9)), "without_png": png(8), "key": KEY}
    return Picture(**(values | changes))


def test_the_next_task_finds_all_images_and_the_time():
    between = [(10, png(8, (1, 1, 1))), (20, png(8, (2, 2, 2)))]
    page = render(sample(**FIRST, pictures=[drawn(between=between)], seconds={"train": 2.5}))
    assert read(page, "ab" * 32, 40) == Earlier({KEY: [*between, (40, png(8, (9, 9, 9)))]}, [2.5], is_known=True)


def test_a_task_that_was_interrupted_in_its_own_folder_finds_those_before_it():
    before = Earlier({}, [2.5], is_known=True)
    own = drawn(between=[(20, png(8)), (50, png(8))])
    page = render(sample(pictures=[own], earlier=before, checkpoint_digest=None, seconds={"train": 9.0}))
    found = read(page, "ab" * 32, 40)
    assert [step for step, _ in found.pictures[KEY]] == [20] and found.seconds == [2.5]


def test_a_report_of_another_training_tells_nothing():
    assert read(render(sample(**FIRST, pictures=[drawn()])), "99" * 32, 40) == Earlier()


@pytest.mark.parametrize(
    "image",
    [
        'src="data:image/svg+xml;base64,PHN2Zz4=" data-step="1"',
        'src="https://example.com/x.png" data-step="1"',
        'src="data:image/png;base64,iVBORw0KGgo=" data-step="1"',
        'src="data:image/png;base64,%" data-step="1"',
        'src="data:image/png;base64,AAAA" data-step="1"',
        'data-step="-1"',
        "data-step",
    ],
)
def test_only_small_png_files_with_a_step_are_taken(image):
    record = f'{{"checkpoint": "{"ab" * 32}", "seconds": [1e300, true, "x", -1, null, 4]}}'
    page = f"<main data-record='{record}'><img data-key=\"{KEY}\" {image}></main>"
    assert read(page, "ab" * 32, 40) == Earlier({}, [None, None, None, None, None, 4.0], is_known=True)


@pytest.mark.parametrize("record", ["", "[]", "{", "[" * 100_000, '{"checkpoint": {}}', '{"seconds": 3}'])
def test_a_damaged_record_tells_nothing(record):
    assert read(f"<main data-record='{record}'>", "ab" * 32, 40) == Earlier()


def test_the_page_tells_what_is_missing():
    assert "not shown" in Page(render(sample())).text
    assert "not shown" not in Page(render(sample(earlier=Earlier(is_known=True)))).text
    assert "not shown" not in Page(render(sample(**FIRST))).text
