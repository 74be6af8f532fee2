"""Format values for messages: untrusted text becomes one line, without control characters, of bounded length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

Say = Callable[[str], None]
"""Takes one line for a person."""
_MAX_JSON: Final = 80


def short(value: Any) -> str:
    """Format a value as Python's repr, shortened."""
    try:
        text = repr(value)
    except RecursionError:
        return "too deep"
    return text if len(text) <= 100 else f"{text[:60]} … {text[-30:]}"


def shown(name: str) -> str:
    """Format a name: control characters and lone surrogates escaped, shortened."""
    text = repr(name)[1:-1]
    return text if len(text) <= 100 else f"{text[:60]}…{text[-39:]}"


def listing(names: Sequence[str], show: Callable[[str], str] = shown, most: int = 3) -> str:
    """Format the first few names and the number of further ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def as_json(value: object) -> str:
    """Format a value as JSON, shortened."""
    return json_clipped(json.dumps(value, ensure_ascii=False))


def json_clipped(text: str) -> str:
    """Shorten a piece of JSON and escape everything unprintable."""
    if len(text) > _MAX_JSON:
        text = f"{text[: _MAX_JSON * 3 // 4]}…{text[-_MAX_JSON // 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, one: str, many: str | None = None) -> str:
    """Format a count with its noun: `1 image`, `2,000 images`; `many` is the plural if it is not `one` + s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def duration_text(seconds: float) -> str:
    """Format a duration: `3.4 s`, `2 min 05 s`, `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"
