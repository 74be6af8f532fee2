"""A stranger's regular expressions: compiled and matched in bounded time. No torch.

`re` can be made to work for hours: it goes back over alternatives, of which there can be 2**n, and compiles some
classes of characters one by one. While it does either, it lets signals in. The one used here counts the process's own
time: a busy machine refuses nothing.
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
"""Processor time for compiling an expression, and again for matching it against all names."""


class TakesTooLongError(Exception):
    """Compiling or matching an expression took longer than allowed."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TakesTooLongError in a block that uses more processor time. In the main thread, and not in itself."""
    if seconds <= 0:
        raise TakesTooLongError
    before = signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _give_up(*_: object) -> NoReturn:
    raise TakesTooLongError


@functools.lru_cache(maxsize=64)
def compiled(expression: str) -> re.Pattern[str] | str:
    """Return an expression compiled, or what is wrong with it, in words that follow the expression."""
    try:
        with warnings.catch_warnings(), limited(SECONDS):
            warnings.simplefilter("ignore")
            return re.compile(expression)
    except TakesTooLongError:
        return f"takes more than {SECONDS:g} s to compile: write it shorter, or list the names"
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"is not a regular expression: {error}"


class Matcher:
    """Tells whether an expression matches whole names, all of them together in bounded time."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._left = SECONDS

    def __call__(self, name: str) -> bool:
        """Raises TakesTooLongError."""
        started = time.process_time()
        try:
            with limited(self._left):
                return self._pattern.fullmatch(name) is not None
        finally:
            self._left -= time.process_time() - started
