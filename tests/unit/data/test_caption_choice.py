"""What a visit says: trigger word, tag order, dropout, all of them functions of the visit's number."""

import collections

import pytest

from engine.core import rng
from engine.data.caption_choice import caption_of_visit, with_trigger
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset


def stream(**options):
    return VisitStream(seed=1, num_rows=5, random_flip=False, num_train_timesteps=1000, **options)


def said(captions, visit, source, **wanted):
    order = lambda length: source.tag_order(visit.number, length)  # noqa: E731
    return caption_of_visit(captions, Dataset(**wanted), visit, order)


def test_without_options_one_caption_is_drawn_as_ever():
    captions = ("one", "two, three", "")
    source = stream()
    for visit in source.visits(0, 50):
        assert said(captions, visit, source) == captions[(visit.caption_word >> 32) * 3 >> 32]
        assert visit.drop_caption is False


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a dog", "sks, a dog"),
        ("", "sks"),
        ("a photo of sks dog", "a photo of sks dog"),
        ("sks", "sks"),
        ("asks a question", "sks, asks a question"),
        ("SKS", "sks, SKS"),
    ],
)
def test_the_trigger_word_is_there_once(caption, expected):
    assert with_trigger(caption, "sks") == expected
    assert with_trigger(caption, None) == with_trigger(caption, "") == caption


def test_a_trigger_word_is_no_pattern():
    assert with_trigger("a b", "a.b") == "a.b, a b"
    assert with_trigger("(c++) code", "c++") == "(c++) code"


def test_tags_are_shuffled_behind_those_that_are_kept():
    source = stream()
    caption = "red, green,blue , , yellow, dark blue"
    tags = ["red", "green", "blue", "yellow", "dark blue"]
    found = [said((caption,), visit, source, shuffle_tags=True, keep_tokens=2) for visit in source.visits(0, 60)]
    assert all(text.split(", ")[:2] == tags[:2] and sorted(text.split(", ")) == sorted(tags) for text in found)
    assert len(set(found)) == 6  # all orders of the other three
    first = [said((caption,), visit, source, shuffle_tags=True).split(", ")[0] for visit in source.visits(0, 200)]
    assert set(first) == set(tags) and max(collections.Counter(first).values()) < 80


def test_the_trigger_word_stays_first():
    source = stream()
    wanted = {"shuffle_tags": True, "trigger_word": "sks"}
    found = {said(("a, b, c",), visit, source, **wanted) for visit in source.visits(0, 60)}
    assert len(found) == 6 and all(text.startswith("sks, ") for text in found)


@pytest.mark.parametrize("caption", ["", "one tag", "  spaced  "])
def test_a_caption_without_tags_stays_as_it_is(caption):
    source = stream()
    assert {said((caption,), visit, source, shuffle_tags=True) for visit in source.visits(0, 5)} == {caption}


def test_dropout_is_a_share_of_the_visits_and_follows_their_number():
    source = stream(caption_dropout=0.25)
    visits = list(source.visits(0, 4000))
    dropped = [visit.drop_caption for visit in visits]
    assert 900 < sum(dropped) < 1100
    assert [visit.drop_caption for visit in stream(caption_dropout=0.25).visits(1234, 100)] == dropped[1234:1334]
    assert {said(("a",), visit, source, trigger_word="sks") for visit in visits if visit.drop_caption} == {""}
    more = [visit.drop_caption for visit in stream(caption_dropout=0.5).visits(0, 4000)]
    assert all(is_more for is_more, is_less in zip(more, dropped, strict=True) if is_less)
    assert all(visit.drop_caption for visit in stream(caption_dropout=1.0).visits(0, 100))


def test_dropout_changes_nothing_else():
    plain, dropping = stream(), stream(caption_dropout=1.0)
    for one, other in zip(plain.visits(0, 20), dropping.visits(0, 20), strict=True):
        assert (one.sample, one.timestep, one.caption_word) == (other.sample, other.timestep, other.caption_word)


def test_fractions_are_the_upper_bits():
    words = rng.words(0, "x", 0, 1000)
    found = rng.fractions(words)
    assert found.min() >= 0 and found.max() < 1 and 0.45 < found.mean() < 0.55
    assert rng.fractions(rng.np.array([0, 2**64 - 1], dtype="u8")).tolist() == [0.0, 1 - 2**-53]
