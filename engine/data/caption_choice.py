"""The caption of a visit: one of the image's, with the task's trigger word, tag order and dropout."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from engine.task.plan.visits import Visit
from engine.task.task import Dataset

TagOrder = Callable[[int], Sequence[int]]
"""A number of tags -> the order in which a visit has them."""


def caption_of_visit(captions: Sequence[str], wanted: Dataset, visit: Visit, tag_order: TagOrder) -> str:
    """Return the caption of a visit, drawn from the image's own, with what `wanted` does to captions."""
    if visit.drop_caption:
        return ""  # what the model is given for "no prompt" in classifier-free guidance
    caption = captions[(visit.caption_word >> 32) * len(captions) >> 32]
    if wanted.shuffle_tags:
        caption = _shuffled(caption, wanted.keep_tokens, tag_order)
    return with_trigger(caption, wanted.trigger_word)


def with_trigger(caption: str, trigger_word: str | None) -> str:
    """Return the caption behind the trigger word and a comma, unless it holds the word already, as a whole word."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def _shuffled(caption: str, keep_tokens: int, tag_order: TagOrder) -> str:
    """The tags between commas in another order, but for the first `keep_tokens`; one of a kind stays as it is."""
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    kept, rest = tags[:keep_tokens], tags[keep_tokens:]
    if len(rest) < 2:
        return caption
    return ", ".join([*kept, *(rest[index] for index in tag_order(len(rest)))])
