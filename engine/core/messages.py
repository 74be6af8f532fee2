"""Values in messages. What comes from strangers is on one line, nothing that acts, and not a book."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

_MAX_JSON: Final = 80


def short(value: Any) -> str:
    """A value for a message, as Python writes it."""
    try:
        text = repr(value)
    except RecursionError:
        return "too deep"
    return text if len(text) <= 100 else f"{text[:60]} … {text[-30:]}"


def shown(name: str) -> str:
    """A file's or column's name for a message: no control characters, no half characters, not endless."""
    text = repr(name)[1:-1]
    return text if len(text) <= 100 else f"{text[:60]}…{text[-39:]}"


def listing(names: Sequence[str], show: Callable[[str], str] = shown, most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def as_json(value: object) -> str:
    """A value for a message, as JSON: for whoever wrote it as JSON."""
    return json_clipped(json.dumps(value, ensure_ascii=False))


def json_clipped(text: str) -> str:
    """A piece of JSON for a message: shortened, with escapes for everything unprintable."""
    if len(text) > _MAX_JSON:
        text = f"{text[: _MAX_JSON * 3 // 4]}…{text[-_MAX_JSON // 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its words: `1 image is`, `2,000 images are`; `many` where an s does not do."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def duration_text(seconds: float) -> str:
    """A time for a person: `3.4 s`, `2 min 05 s`, `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"
