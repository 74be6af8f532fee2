"""Tags of captions: how often each occurs, and that there is a bound."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from engine.data import tag_counts
from engine.data.tag_counts import count_tags


def dataset(*parts):
    rows = [SimpleNamespace(captions=pa.chunked_array([captions]), repeats=repeats) for captions, repeats in parts]
    return SimpleNamespace(parts=tuple(rows))


def test_as_kohyas_tools_count_them():
    found = dataset((["Red, a cat,red ,,", "a cat", ""], 1), ([["a dog", "red"], ["a dog"]], 3))
    assert count_tags(found, None) == {"1_images": {"a cat": 2, "red": 2}, "3_images": {"a dog": 2, "red": 1}}


def test_the_trigger_word_is_counted_as_it_is_trained():
    assert count_tags(dataset((["a cat", "sks, on a mat"], 1)), "sks") == {
        "1_images": {"sks": 2, "a cat": 1, "on a mat": 1}
    }


def test_how_rows_are_spread_over_tables_changes_nothing():
    """Not even the order in which the tags are listed."""
    one = count_tags(dataset((["b, a", "c, a", "d"], 1)), None)
    other = count_tags(dataset((["d"], 1), (["b, a", "c, a"], 1)), None)
    assert list(one["1_images"]) == list(other["1_images"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name, value", [("MAX_TAGS", 2), ("MAX_IMAGES", 1), ("MAX_CHARACTERS", 1)])
def test_the_list_is_bounded(monkeypatch, name, value):
    monkeypatch.setattr(tag_counts, name, value)
    found = count_tags(dataset((["a, bb", "a, c, dd"], 1)), None)["1_images"]
    assert (
        found
        == {"MAX_TAGS": {"a": 2, "bb": 1}, "MAX_IMAGES": {"a": 1, "bb": 1}, "MAX_CHARACTERS": {"a": 2, "c": 1}}[name]
    )
