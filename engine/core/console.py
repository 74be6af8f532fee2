"""A running job's output for a person: lines on stderr, and bars on a terminal. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

from tqdm import tqdm

from engine.core.errors import TaskError
from engine.core.messages import duration_text

NOTE: Final = "note: "
"""The beginning of a line that is a warning: `result.json` lists these lines under `warnings`."""
_MAX_NOTES: Final = 100
_INTRODUCTION_SECONDS: Final = 2.0
_PLAIN_SECONDS: Final = 10.0
_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]"

_PHASES: Final = {
    "start": "importing the libraries",
    "download": "finding the base model and the dataset",
    "load": "loading the base model",
    "encode": "encoding the dataset",
}
"""The lines for the phases before the first step, said as they begin."""

T = TypeVar("T")
Level = Literal["info", "warning", "error"]
Introduction = Callable[[], tuple[str, Mapping[str, Any]]]
"""Return the log's first line, and the same as key-value pairs for a JSON log."""


@dataclass(slots=True)
class _Log:
    """The state of this process's log."""

    is_silent: bool = False
    is_json: bool = False
    introduction: Introduction | None = None
    """Makes the log's first line; None once that is written."""
    waiting: list[str] = field(default_factory=list)
    """Lines that were logged before the first line was written."""
    is_timed: bool = False
    """True once the first line is written after two seconds, whatever is known by then."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    notes: list[str] = field(default_factory=list)
    bars: list[_Bar] = field(default_factory=list)
    """The open bars. Only the last one is on the screen."""


_log = _Log()


def timestamp() -> str:
    """Return the time of day in UTC, ISO 8601. Only for logs: it must not enter `checkpoint/` or `validation/`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def keep_silent() -> None:
    """Log nothing from now on: the job's first process logs for all."""
    _log.is_silent = True


def choose_format(environment: Mapping[str, str]) -> None:
    """Write the log as `LOG_FORMAT` says: lines for a person (`text`, the default), or a JSON object a line (`json`).

    Raises:
        TaskError: it says something else.
    """
    found = environment.get("LOG_FORMAT") or "text"
    if found not in ("text", "json"):
        raise TaskError(f"LOG_FORMAT is {found!r}: expected text or json")
    _log.is_json = found == "json"


def introduce(introduction: Introduction) -> None:
    """Set the log's first line, which is made when `begin_log` is called, when more is known.

    Lines that are logged earlier wait at most two seconds for it: a download before it may take hours.
    """
    _log.introduction = introduction


def begin_log() -> bool:
    """Write the log's first line and the lines that wait for it. Return False if it is written already."""
    with _log.lock:
        if _log.introduction is None:
            return False
        (first, known), _log.introduction = _log.introduction(), None
        _write(_line(first, "info", known))
        for line in _log.waiting:
            _write(line)
        _log.waiting.clear()
        return True


def notes() -> list[str]:
    """Return the warnings so far, each once, at most the first 100."""
    return list(dict.fromkeys(_log.notes))[:_MAX_NOTES]


def say(message: str, *, level: Level = "info", can_wait: bool = False, **facts: Any) -> None:
    """Log one line on stderr without disturbing a progress bar. Every line of the job comes through here.

    Args:
        message: the line. One that begins with `NOTE` is a warning.
        level: of a JSON log.
        can_wait: True if it may wait for the log's first line for any time.
        facts: further key-value pairs for a JSON log.
    """
    if _log.is_silent:
        return
    if message.startswith(NOTE):
        _log.notes.append(message.removeprefix(NOTE))
        level = "warning"
    line = _line(message, level, facts)
    with _log.lock:
        if _log.introduction is None:
            _write(line)
            return
        _log.waiting.append(line)
        if not can_wait and not _log.is_timed:
            _log.is_timed = True
            timer = threading.Timer(_INTRODUCTION_SECONDS, begin_log)
            timer.daemon = True
            timer.start()


def say_error(message: str, *, code: int, kind: str) -> None:
    """Log why the job ends, even in a silent process: no other process may be left to do it."""
    begin_log()
    _write(_line(f"error: {message}", "error", {"code": code, "kind": kind}))


def say_traceback() -> None:
    """Log the traceback of the exception that is being handled, in any process."""
    _write(_line(traceback.format_exc().rstrip("\n"), "error", {}))


def _line(message: str, level: Level, facts: Mapping[str, Any]) -> str:
    if not _log.is_json:
        return message
    return json.dumps({"time": timestamp(), "level": level, "message": message, **facts}, allow_nan=False)


def _write(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Phases:
    """Names the phases before the first step as they begin."""

    def __init__(self) -> None:
        self._left = dict(_PHASES)

    def say(self, name: str) -> None:
        """Log that a phase begins, if it is one of those before the first step and has not begun before."""
        if name == "train":
            self._left.clear()
        if name in self._left:
            # A program that reads the log finds task and device in its first line.
            say(self._left.pop(name), can_wait=_log.is_json)


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A progress bar that shows its speed with `speed_text`, and can be hidden."""

    is_hidden = False

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        return not self.is_hidden and bool(super().display(msg, pos))

    @property
    def format_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().format_dict
        rate = found["rate"] or (found["n"] - found["initial"]) / max(found["elapsed"], 1e-9)
        return found | {"speed": speed_text(rate, found["unit"])}


def speed_text(rate: float, unit: str) -> str:
    """Return a speed for a person: `4.2 steps/s`, or `3.4 s/step` where one takes longer than a second."""
    if rate <= 0:
        return f"? {unit}/s"
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


def _shows_bars() -> bool:
    """Return whether stderr is a terminal with a known width: that of a pod with `tty: true` has zero columns."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:  # it is gone
        return False


class Meter:
    """Show the progress of countable work: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, what: str, unit: str, total: int, *, start: int = 0, begins: bool = True) -> None:
        """
        Args:
            what: name of the work.
            unit: plural name of the counted items.
            total: number of items; with 0 nothing is shown.
            start: number of items done already.
            begins: start the clock now; else `begin` does.
        """
        self._what, self._unit, self._total, self._start = what, unit, total, start
        self._bar: _Bar | None = None
        self._began: float | None = None
        self._next_line = 0.0
        if begins:
            self.begin()

    def begin(self) -> None:
        """Start the clock and show the bar. Further calls do nothing."""
        if self._began is not None:
            return
        self._began = time.monotonic()
        self._next_line = self._began + _PLAIN_SECONDS
        if self._total > self._start and _shows_bars() and not _log.is_silent and not _log.is_json:
            outer = _log.bars[-1] if _log.bars else None
            if outer is not None:
                outer.clear()
                outer.is_hidden = True
            self._bar = _Bar(
                desc=self._what,
                unit=self._unit,
                total=self._total,
                initial=self._start,
                file=sys.stderr,
                bar_format=_BAR,
                position=0,
                leave=outer is None,  # what is done inside another piece of work goes from the screen with its end
            )
            _log.bars.append(self._bar)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; each counts as done when the next one is requested."""
        try:
            for done, item in enumerate(items, start=self._start + 1):
                yield item
                self.update(done)
        finally:
            self.close()

    def update(self, done: int, note: str = "") -> bool:
        """Show that `done` items of the total are done. Return True if a line is written, or would be without a bar."""
        self.begin()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            if done == self._total:
                self.close()
        if done != self._total and time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + _PLAIN_SECONDS
        if self._bar is None:
            counted: dict[str, Any] = {"what": self._what, "done": done, "total": self._total, "unit": self._unit}
            words = [f"{done}/{self._total} {self._unit}", note, *self._pace(done)]
            clock = "" if _log.is_json else f"{timestamp()[11:19]} "
            say(f"{clock}{self._what}: {', '.join(filter(None, words))}", **counted)
        return True

    def _pace(self, done: int) -> list[str]:
        """Return the speed and the estimated time left, as words; empty before the first item."""
        elapsed, own = time.monotonic() - (self._began or 0.0), done - self._start
        if own <= 0 or elapsed <= 0:
            return []
        left = elapsed / own * (self._total - done)
        return [speed_text(own / elapsed, self._unit), *([f"about {duration_text(left)} left"] if left > 0 else [])]

    def close(self) -> None:
        """Close the bar, finished or not."""
        others = [bar for bar in _log.bars if bar is not self._bar]  # tqdm's bars are equal if their positions are
        if self._bar is None or len(others) == len(_log.bars):
            return
        self._bar.close()
        _log.bars = others
        if others:
            _log.bars[-1].is_hidden = False
            _log.bars[-1].refresh()
