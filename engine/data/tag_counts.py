"""Count the tags of a dataset's captions, as LoRA files list them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Final

from engine.data import caption_choice
from engine.data.dataset.dataset import ImageDataset
from engine.data.dataset.rows import Rows

MAX_IMAGES: Final = 100_000
"""The number of images whose captions are counted: the first ones of a larger dataset."""
MAX_TAGS: Final = 1_000
"""The number of tags that are listed: the most frequent ones."""
MAX_CHARACTERS: Final = 200
"""Longer tags, which are sentences, are not listed."""


def count_tags(dataset: ImageDataset, trigger_word: str | None) -> dict[str, dict[str, int]]:
    """Return how many captions have each tag, as kohya's tools count them: in lower case, whatever the repeats are.

    The counts are grouped by the number of repeats, under names like those of kohya's folders (`3_images`), since names
    of folders must not change a result. Tags are in the order of their number, then of the alphabet.
    """
    counters: dict[str, Counter[str]] = {}
    for key, caption in islice(_captions(dataset), MAX_IMAGES):
        tags = caption_choice.with_trigger(caption, trigger_word).split(",")
        counters.setdefault(key, Counter()).update(tag for tag in (tag.strip().lower() for tag in tags) if tag)
    found = [
        (-count, tag, key)
        for key, counter in counters.items()
        for tag, count in counter.items()
        if len(tag) <= MAX_CHARACTERS
    ]
    listed: dict[str, dict[str, int]] = {key: {} for key in sorted(counters)}
    for count, tag, key in sorted(found)[:MAX_TAGS]:
        listed[key][tag] = -count
    return listed


def _captions(dataset: ImageDataset) -> Iterator[tuple[str, str]]:
    """Yield each caption of each image with the name of its group."""
    for part in dataset.parts:
        for caption in _captions_of(part):
            yield group_name(part), caption


def group_name(rows: Rows) -> str:
    """Return the name of a table's images in the counts."""
    return f"{rows.repeats}_images"


def _captions_of(rows: Rows) -> Iterator[str]:
    for chunk in rows.captions.chunks:
        for value in chunk:
            found = value.as_py()
            yield from (found,) if isinstance(found, str) else found
