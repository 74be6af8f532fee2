"""Reading environment variables."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import TaskError


def int_variable(env: Mapping[str, str], name: str, *, default: int, least: int) -> int:
    """An environment variable that holds a whole number, `default` when absent or empty.

    Raises:
        TaskError: something else is in it, or a smaller number than `least`.
    """
    text = env.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or len(text) > 4000 or int(text) < least:
        raise TaskError(f"{name} is {text!r}: expected a whole number of at least {least}")
    return int(text)
