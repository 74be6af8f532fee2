"""The report's table of a chain's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any, Final

from engine.core.messages import duration_text
from engine.results.report.text import as_html, clipped, device_text, mapping_of, step_text

_MAX_ROWS: Final = 100


def chain(lineage: Sequence[Mapping[str, Any]], seconds: Sequence[float | None], new: str) -> str:
    """Return the section.

    Args:
        lineage: the chain's tasks, the last one at the end: `from_step`, `to_step`, `parent`, `changed`, `device`,
            `versions`.
        seconds: the wall time of each task; None where it is not known.
        new: the words for a training without a checkpoint.
    """
    entries = [mapping_of(entry) for entry in lineage]
    times = list(seconds)[: len(entries)]
    rows = [
        _row(number, before, entry, None if time is None else time, new)
        for number, ((before, entry), time) in enumerate(zip_longest(pairwise([{}, *entries]), times), start=1)
    ]
    hidden = len(rows) - _MAX_ROWS
    note = f"The latest {_MAX_ROWS} of {len(rows):,} tasks. " if hidden > 0 else ""
    return f"""<section><h2>The chain</h2><p class="note">{note}{_whole(entries, seconds)}</p>
<div class="card"><table class="lineage"><thead><tr><th scope="col">Task</th><th scope="col">Steps</th>\
<th scope="col">Time</th><th scope="col">Starts from</th><th scope="col">What changed</th>\
<th scope="col">Device</th></tr></thead>
<tbody>{"".join(rows[max(0, hidden) :])}</tbody></table></div></section>"""


def chain_time(seconds: Sequence[float | None], tasks: int) -> str:
    """Return the wall time of the chain's tasks as text: "at least" where not all of them are known."""
    known = [value for value in seconds[:tasks] if value is not None]
    return f"{'' if len(known) == tasks else 'at least '}{duration_text(sum(known))}"


def _whole(entries: Sequence[Mapping[str, Any]], seconds: Sequence[float | None]) -> str:
    if not entries:
        return ""
    time = chain_time(seconds, len(entries))
    text = f"{time[:1].upper()}{time[1:]} for all steps, with the processes that were interrupted"
    known = sum(value is not None for value in seconds[: len(entries)])
    missing = "" if known == len(entries) else "; the time of a task is known from its report.html alone"
    return f"{text}{missing}."


def _row(number: int, before: Mapping[str, Any], entry: Mapping[str, Any], seconds: float | None, new: str) -> str:
    changed = dict(mapping_of(entry.get("changed")))
    if before:
        old, now = mapping_of(before.get("versions")), mapping_of(entry.get("versions"))
        changed |= {name: [old.get(name), now[name]] for name in now if old.get(name) != now[name]}
    changes = "".join(
        f"<li><code>{as_html(clipped(name))}</code> {as_html(' → '.join(clipped(value) for value in values))}</li>"
        for name, values in changed.items()
        if isinstance(values, list)
    )
    parent = entry.get("parent")
    cells = {
        "Task": f"{number:,}",
        "Steps": f"{step_text(entry.get('from_step'))} to {step_text(entry.get('to_step'))}",
        "Time": "?" if seconds is None else duration_text(seconds),
        "Starts from": f"<code>{as_html(parent[:12])}</code>" if isinstance(parent, str) else as_html(new),
        "What changed": f'<ul class="changes">{changes}</ul>' if changes else "nothing",
        "Device": as_html(device_text(mapping_of(entry.get("device")))),
    }
    return (
        "<tr>" + "".join(f'<td data-label="{label}"><div>{cell}</div></td>' for label, cell in cells.items()) + "</tr>"
    )
