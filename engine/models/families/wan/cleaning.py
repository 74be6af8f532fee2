"""Clean prompts as Wan's pipeline does. No torch."""

from __future__ import annotations

import html


def clean(prompt: str) -> str:
    """Return a prompt with HTML's entities resolved, twice, and each run of white space as one space.

    Diffusers' pipeline also calls `ftfy.fix_text` where that package is installed, so that its result depends on the
    machine; this one does not.
    """
    return " ".join(html.unescape(html.unescape(prompt)).split())
