"""The tags that a tagger knows: `selected_tags.csv`, a row for each of the model's outputs, in their order."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final, NamedTuple

GENERAL: Final = "0"
CHARACTER: Final = "4"
"""Categories, by Danbooru's numbers. Others, such as 9 (the rating), are not written."""
_MAX_BYTES: Final = 16 << 20
_EMOTICONS: Final = frozenset({"(o)_(o)", "<o>_<o>", "<|>_<|>", "||_||"})
"""Emoticons of more than three characters, in which an underscore is a mouth or a nose."""


class Tag(NamedTuple):
    """A tag as it is written in captions, and whether it is written."""

    name: str
    is_written: bool


def spelled(name: str) -> str:
    """Return a tag with blanks for underscores, but for emoticons: all of up to three characters, such as `^_^`."""
    words = name if len(name) <= 3 or name in _EMOTICONS else name.replace("_", " ")
    return " ".join(words.split())


def read_tags(path: Path) -> list[Tag]:
    """Read the tags.

    Raises:
        ValueError: it is not such a table.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
    table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    if not {"name", "category"} <= set(table.fieldnames or ()):
        raise ValueError("it has no columns name and category")
    try:
        return [_tag(row["name"], row["category"]) for row in table]
    except csv.Error as error:
        raise ValueError(f"after line {table.line_num}: {error}") from error


def _tag(name: str | None, category: str | None) -> Tag:
    written = spelled(name or "")
    if not written or not written.isprintable() or category is None:
        raise ValueError(f"it has a row with the name {name!r} and the category {category!r}")
    return Tag(written, category.strip() in (GENERAL, CHARACTER))
