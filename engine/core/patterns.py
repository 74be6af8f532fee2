"""Compile and match a stranger's regular expressions in bounded time. Imports no torch.

`re` can be made to work for hours: it backtracks over up to 2**n alternatives, and compiles some character classes
character by character. Both let signals in, so a timer of the process's own CPU time ends them; a busy machine refuses
nothing. The package `regex` has a time-out for matching, but compiles the 23 characters `((a{1000}){1000}){1000}` until
the memory is full, so it is no safer.
"""

from __future__ import annotations

import functools
import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

SECONDS: Final = 1.0
"""CPU time for compiling an expression, and again for matching it against all names."""


_AGAIN_SECONDS: Final = 0.5
"""CPU time after which it is raised again: Python drops an exception that is raised in an object's finalizer."""


class TakesTooLongError(Exception):
    """Compiling or matching an expression took longer than allowed."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TakesTooLongError in a block that uses more CPU time. Main thread only; blocks cannot be nested."""
    if seconds <= 0:
        raise TakesTooLongError
    before = signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _give_up(*_: object) -> NoReturn:
    raise TakesTooLongError


@functools.lru_cache(maxsize=64)
def compiled(expression: str) -> re.Pattern[str] | str:
    """Return the compiled expression, or what is wrong with it, worded to follow the expression in a message."""
    try:
        with warnings.catch_warnings(), limited(SECONDS):
            warnings.simplefilter("ignore")
            return re.compile(expression)
    except TakesTooLongError:
        return f"takes more than {SECONDS:g} s to compile: write it shorter, or list the names"
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"is not a regular expression: {error}"


class Matcher:
    """Match an expression against whole names, in bounded time for all of them together."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._left = SECONDS

    def __call__(self, name: str) -> bool:
        """Return whether the whole name matches. Raises TakesTooLongError."""
        started = time.process_time()
        try:
            with limited(self._left):
                return self._pattern.fullmatch(name) is not None
        finally:
            self._left -= time.process_time() - started
