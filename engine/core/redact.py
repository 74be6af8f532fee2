"""Remove secrets from URLs before they are shown. Imports no torch."""

from __future__ import annotations

import re
from typing import Final

from engine.core.messages import shown

_SCHEME: Final = r"([a-z][a-z0-9+.-]*://)"
_ADDRESS: Final = re.compile(rf"\b{_SCHEME}(?:[^\s/?#]*@)?([^\s?#]*)(\?[^\s#]*)?(#\S*)?", re.IGNORECASE)
# Where a text begins as one, all of it may be one: a password may have spaces.
_LOGIN: Final = re.compile(rf"\A{_SCHEME}[^/?#]*@", re.IGNORECASE)


def public(text: str) -> str:
    """Remove user names, passwords, queries and fragments from the URLs in a text."""
    return _ADDRESS.sub(
        lambda found: f"{found[1]}{found[2]}{'?…' if found[3] else ''}{'#…' if found[4] else ''}",
        _LOGIN.sub(r"\1", text),
    )


def shown_url(url: str) -> str:
    """Format a URL for a message: secrets removed, control characters escaped, shortened."""
    return shown(public(url))
