"""The parts of the report that are there only as long as a task has no result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from engine.core.redact import public
from engine.results.report.text import as_html, without_folders

_REFRESH_SECONDS: Final = 30
"""The time after which a browser looks again while the task runs."""
_TEXTS: Final = {
    "running": "This page is renewed at every image, and at least every minute.",
    "interrupted": "The same command, with the same variables, mounts and folders, goes on from here:",
    "failed": "It ended without a result:",
}


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The state of a task that has no result yet."""

    status: Literal["running", "interrupted", "failed"]
    time: str
    """The time in UTC, ISO 8601."""
    more: str = ""
    """The command that continues an interrupted task, or why a task failed."""


def refresh(now: Unfinished | None) -> str:
    """Return the tag that lets a browser look again while the task runs."""
    is_running = now is not None and now.status == "running"
    return f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">\n' if is_running else ""


def notice(now: Unfinished | None) -> str:
    """Return a paragraph on the state of a task without a result."""
    if now is None:
        return ""
    more = f" <code>{as_html(without_folders(public(now.more)))}</code>" if now.more else ""
    return f'<p class="note">{now.status.capitalize()}, as of {as_html(now.time)}. {_TEXTS[now.status]}{more}</p>\n'
