"""What comes from strangers, in messages: on one line, nothing that acts, and not a book."""

from __future__ import annotations

from typing import Any


def short(value: Any) -> str:
    """A value for a message: on one line, and not a book."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]} … {text[-30:]}"


def shown(name: str) -> str:
    """A file's or column's name for a message: no control characters, no half characters, not endless."""
    text = repr(name)[1:-1]
    return text if len(text) <= 100 else f"{text[:60]}…{text[-39:]}"
