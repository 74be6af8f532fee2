"""The table of a chain's tasks: its times."""

from engine.results.report import render
from engine.results.report.earlier import Earlier
from tests.support.reports import Page, sample, task_entry


def test_the_time_of_the_whole_chain():
    text = Page(render(sample(earlier=Earlier({}, [3600.0], is_known=True), seconds={"train": 60.0}))).text
    assert "1 min 00 sthis task; whole chain: 1 h 01 min" in text
    assert "1 h 01 min for all steps, with the processes that were interrupted." in text
    assert "0 to 401 h 00 min" in text


def test_a_time_that_is_not_known():
    lineage = [task_entry(0, 20), task_entry(20, 40), task_entry(40, 60)]
    earlier = Earlier({}, [None, 5.0], is_known=True)
    text = Page(render(sample(lineage=lineage, earlier=earlier, seconds={"train": 6.0}))).text
    assert "At least 11 s for all steps" in text and "0 to 20?" in text
    assert "from its report.html alone" in text
