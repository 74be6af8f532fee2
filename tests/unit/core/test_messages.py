"""Values in messages."""

import pytest

from engine.core.messages import as_json, listing, plural, short, shown


@pytest.mark.parametrize(
    "count, words, expected",
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (1234, ("image is", "images are"), "1,234 images are"),
        (1, ("image is", "images are"), "1 image is"),
    ],
)
def test_counts_agree_with_their_words(count, words, expected):
    assert plural(count, *words) == expected


def test_a_list_is_not_endless():
    assert listing(["a", "b\n", "c"]) == "a, b\\n, c"
    assert listing(["a"] * 1004) == "a, a, a and 1,001 more"


@pytest.mark.parametrize("show, limit", [(short, 100), (shown, 100), (as_json, 81)])
def test_what_strangers_wrote_is_one_short_line(show, limit):
    text = show("\n\x1b[2J\u202e" * 1000)
    assert text.isprintable() and len(text) <= 5 * limit
    assert len(show("a" * 1000)) <= limit


def test_what_is_too_deep_to_be_written():
    value = []
    for _ in range(100_000):
        value = [value]
    assert short(value) == "too deep"
