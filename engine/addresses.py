"""Addresses as anybody may see them. No torch."""

from __future__ import annotations

import re
from typing import Final

_ADDRESS: Final = re.compile(r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*)(\?[^\s#]*)?(#\S*)?", re.IGNORECASE)


def public(text: str) -> str:
    """Without the parts of URLs that hold secrets: who logs in, and what a signed address is signed with."""
    return _ADDRESS.sub(lambda found: f"{found[1]}{found[2]}{'?…' if found[3] else ''}{'#…' if found[4] else ''}", text)
