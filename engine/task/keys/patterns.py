"""Patterns of strings that several keys share."""

from typing import Final

NO_NUL: Final = "^[^\\u0000]*$"
"""The pattern of names and paths: operating systems accept no NUL character in them."""
FOLDER_NAME: Final = "^[a-z][a-z0-9_]{0,63}$"
"""The pattern of names that are keys: those of a base model's folders."""
