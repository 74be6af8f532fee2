"""Expand WebDataset's brace notation: `train-{000000..000999}.tar` names a thousand files."""

from __future__ import annotations

import itertools
import math
import re
from typing import Final

from engine.core.errors import DatasetError

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
_MAX_CHARACTERS: Final = 64 << 20
_ADVICE: Final = (
    "write a range of numbers, as in {000000..000999}, or a list with one URL a line; %7B and %7D are braces of a URL "
    "itself"
)


def has_braces(text: str) -> bool:
    """Return whether a text is meant as brace notation."""
    return "{" in text or "}" in text


def expanded(text: str, most: int) -> list[str]:
    """Return the texts that a text with braces stands for, in order; a text without braces stands for itself.

    Each `{first..last}` is a range of whole numbers, padded with zeros to the width of the longer one if either is
    written with a leading zero. With several ranges the last one changes fastest.

    Raises:
        DatasetError: something else is in braces, or there are more than `most` texts. The message begins with what
            "it" (the text) has.
    """
    pieces = _BRACES.split(text)  # literal text and the content of braces alternate
    if any(has_braces(piece) for piece in pieces[::2]):
        raise DatasetError(f"has braces inside braces, or a brace without its other one: {_ADVICE}")
    ranges = [_range_of(content) for content in pieces[1::2]]
    count = math.prod(last - first + 1 for first, last, _ in ranges)
    if count > most or count * len(text) > _MAX_CHARACTERS:
        raise DatasetError(f"stands for too many URLs (at most {most:,}): use fewer, larger shards")
    choices = [[f"{number:0{width}}" for number in range(first, last + 1)] for first, last, width in ranges]
    return [_joined(pieces, chosen) for chosen in itertools.product(*choices)]


def _range_of(content: str) -> tuple[int, int, int]:
    """Return a range's first and last number, and the width that numbers are padded to."""
    found = _RANGE.fullmatch(content)
    if found is None:
        raise DatasetError(f"has something else than a range of numbers in braces: {_ADVICE}")  # perhaps a secret
    first, last = found.groups()
    if int(first) > int(last):
        raise DatasetError(f"has {{{content}}}, a range whose first number is larger than its last: {_ADVICE}")
    is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
    return int(first), int(last), max(len(first), len(last)) if is_padded else 1


def _joined(pieces: list[str], chosen: tuple[str, ...]) -> str:
    literals = pieces[::2]
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(literals, chosen, fillvalue="")))
