"""Patterns of strings that several keys share."""

from typing import Final

NO_NUL: Final = "^[^\\u0000]*$"
"""The pattern of names and paths: operating systems accept no NUL character in them."""
