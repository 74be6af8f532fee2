"""The caption of a visit: one of the image's, with the task's trigger word, tag order and dropout."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from engine.task.plan.visits import Visit
from engine.task.task import Dataset

TagOrder = Callable[[int], Sequence[int]]
"""Maps a number of tags to their order in one visit: a permutation of range(number)."""


def caption_of_visit(captions: Sequence[str], wanted: Dataset, visit: Visit, tag_order: TagOrder) -> str:
    """Return the caption of a visit: one of the image's captions, changed as `wanted` asks.

    Args:
        captions: the image's, at least one.
        wanted: the task's `dataset`: trigger word, tag order.
        visit: decides which caption is drawn, and whether it is dropped.
        tag_order: gives the order of the tags, where they are shuffled.
    """
    if visit.drop_caption:
        return ""  # the unconditional prompt of classifier-free guidance
    caption = captions[(visit.caption_word >> 32) * len(captions) >> 32]
    if wanted.shuffle_tags:
        caption = _shuffled(caption, wanted.keep_tokens, tag_order)
    return with_trigger(caption, wanted.trigger_word)


def with_trigger(caption: str, trigger_word: str | None) -> str:
    """Return the caption with the trigger word and a comma in front, unless it contains the word already."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def _shuffled(caption: str, keep_tokens: int, tag_order: TagOrder) -> str:
    """Return the caption with its comma-separated tags in another order; the first `keep_tokens` keep their places.

    A caption with fewer than two tags to reorder is returned unchanged.
    """
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    kept, rest = tags[:keep_tokens], tags[keep_tokens:]
    if len(rest) < 2:
        return caption
    return ", ".join([*kept, *(rest[index] for index in tag_order(len(rest)))])
