"""URLs as anybody may see them: without the parts that hold secrets. No torch."""

from __future__ import annotations

import re
from typing import Final

from engine.core.messages import shown

_SCHEME: Final = r"([a-z][a-z0-9+.-]*://)"
_ADDRESS: Final = re.compile(rf"\b{_SCHEME}(?:[^\s/?#]*@)?([^\s?#]*)(\?[^\s#]*)?(#\S*)?", re.IGNORECASE)
# Where a text begins as one, all of it may be one: a password may have spaces.
_LOGIN: Final = re.compile(rf"\A{_SCHEME}[^/?#]*@", re.IGNORECASE)


def public(text: str) -> str:
    """A text without the parts of URLs that hold secrets: who logs in, and what a signed address is signed with."""
    return _ADDRESS.sub(
        lambda found: f"{found[1]}{found[2]}{'?…' if found[3] else ''}{'#…' if found[4] else ''}",
        _LOGIN.sub(r"\1", text),
    )


def shown_url(url: str) -> str:
    """A URL for a message: without secrets, no control characters, not endless."""
    return shown(public(url))
