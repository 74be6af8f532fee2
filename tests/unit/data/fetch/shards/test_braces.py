"""WebDataset's brace notation: what it stands for, and what is refused."""

import time

import pytest

from engine.core.errors import DatasetError
from engine.data.fetch.shards.braces import expanded


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("t-{000..002}.tar", ["t-000.tar", "t-001.tar", "t-002.tar"]),
        ("{0..1}/{5..6}", ["0/5", "0/6", "1/5", "1/6"]),
        ("{7..7}", ["7"]),
    ],
)
def test_ranges(text, found):
    assert expanded(text, 100) == found


@pytest.mark.parametrize(
    "text", ["{a..b}", "{a,b}", "{}", "{5..1}", "{{0..1}}", "{0..1", "0..1}", "{0..1}}", "{-1..1}"]
)
def test_what_is_no_range_of_numbers(text):
    with pytest.raises(DatasetError, match=r"range of numbers.*\{000000\.\.000999\}"):
        expanded(text, 100)


@pytest.mark.parametrize(
    "text",
    ["{0..100}", "{0..999999999999}" * 400, f"{{1..{'9' * 5000}}}", "{0..1}" * 5000, "x" * 8000 + "{00000..99999}"],
)
def test_too_many_are_refused_at_once(text):
    begun = time.monotonic()
    with pytest.raises(DatasetError):
        expanded(text, 100 if len(text) < 7000 else 100_000)
    assert time.monotonic() - begun < 1
