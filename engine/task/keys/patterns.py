"""Patterns of strings that several keys share."""

from typing import Final

NO_NUL: Final = "^[^\\u0000]*$"
"""Of names and paths, which no operating system takes with a NUL character."""
