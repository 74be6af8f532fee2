"""Write untrusted text into Markdown and YAML, so that it stays text whatever is in it."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 1_000
"""Longer texts are cut."""
_BACKTICKS: Final = re.compile("`+")


def line(text: str) -> str:
    """Return the text as one line of bounded length without control characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    shown = " ".join(printable.split())
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[:MAX_CHARACTERS]}…"


def code(text: str) -> str:
    """Return the text as a code span (CommonMark, section 6.1): in it nothing is markup."""
    shown = line(text)
    if not shown:
        return "–"
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def cell(text: str) -> str:
    """Return the text as a code span in a cell of a table, where a bar would end the cell."""
    return code(text).replace("|", "\\|")


def fenced(source: str, language: str) -> str:
    """Return source code as a fenced block that nothing in the code can end."""
    fence = "`" * max(_longest_run(source) + 1, 3)
    return f"{fence}{language}\n{source}\n{fence}"


def quoted(text: str) -> str:
    """Return the text as a double-quoted YAML scalar in one line, which every version of YAML reads as this string."""
    return '"' + "".join(_escaped(char) for char in line(text)) + '"'


def _escaped(char: str) -> str:
    return f"\\{char}" if char in '"\\' else char


def _longest_run(text: str) -> int:
    return max((len(found) for found in _BACKTICKS.findall(text)), default=0)
