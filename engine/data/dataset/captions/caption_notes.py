"""Notes about captions: images with several captions, and prompt syntax of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from engine.core.messages import listing, plural, short
from engine.data.dataset.columns import is_list
from engine.data.dataset.rows import Rows

_MAX_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class _Mark:
    """Prompt syntax of other programs. It has no special meaning here: it is trained as text."""

    pattern: str
    """A regular expression in RE2 syntax, which Arrow uses."""
    words: str


_MARKS: Final = (
    _Mark(r"\|\|\|", "kohya's separator |||, which is trained as text; dataset.keep_tokens keeps the first tags"),
    _Mark(
        r"\{[^{}]*\|[^{}]*\}|__[\w/-]+__",
        "wildcards such as {red|blue} or __colour__, which are trained as text; write a caption for each",
    ),
    _Mark(
        r"[(\[][^()\[\]]*:\s*\d?\.\d+\s*[)\]]", "weights such as (red:1.2), which are trained as text; leave them out"
    ),
    _Mark(r"<(?:lora|lyco|hypernet):[^<>]*>", "tags such as <lora:name:1>, which are trained as text; leave them out"),
)


def caption_notes(parts: Sequence[Rows], noun: str) -> list[str]:
    """Return notes: how many samples have several captions, with an example, and how many have other prompt syntax.

    `noun` is the word for one sample.
    """
    lines = []
    several = [(part, rows) for part in parts if (rows := _several(part))]
    if several:
        part, rows = several[0]
        captions = part.captions[rows[0]].as_py()
        most = max(pc.max(pc.list_value_length(part.captions)).as_py() for part, _ in several)
        has = plural(sum(len(rows) for _, rows in several), f"{noun} has", f"{noun}s have")
        lines.append(
            f"dataset: {has} several captions (up to {most:,}), of which each visit draws one; "
            f"{part.images.name(rows[0])}: {listing(captions, short)}"
        )
    for mark in _MARKS:
        found = [(part, _matching(part, mark.pattern)) for part in parts]
        if count := sum(len(rows) for _, rows in found):
            have = plural(count, f"{noun} has a caption", f"{noun}s have captions")
            lines.append(f"dataset: {have} with {mark.words}: {_names(found, count)}")
    return lines


def _names(found: Sequence[tuple[Rows, list[int]]], count: int) -> str:
    """Return the names of the first few images, and how many more there are."""
    names = [part.images.name(row) for part, rows in found for row in rows[:_MAX_SHOWN]][:_MAX_SHOWN]
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    return ", ".join(names) + more


def _several(part: Rows) -> list[int]:
    """Return the rows that have several captions."""
    if not is_list(part.captions.type):
        return []
    # Compared in Python: making 1 an Arrow scalar imports pandas, which takes a quarter of a second.
    return [row for row, count in enumerate(pc.list_value_length(part.captions).to_pylist()) if count > 1]


def _matching(part: Rows, pattern: str) -> list[int]:
    """Return the rows with a caption that matches the pattern."""
    captions = part.captions
    texts = pc.list_flatten(captions) if is_list(captions.type) else captions
    found = pc.indices_nonzero(pc.match_substring_regex(texts.cast(pa.large_string()), pattern))
    if is_list(captions.type):
        found = pc.unique(pc.list_parent_indices(captions).take(found))
    rows: list[int] = found.to_pylist()
    return rows
