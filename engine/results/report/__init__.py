"""Render `report.html`, a job's result as one page for a person: no network, no script, no file beside it.

Prompts, names and everything in a checkpoint are untrusted: every text is escaped by `as_html`, and the page's policy
allows a browser to load only the images in the page itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from engine.core.messages import duration_text, plural
from engine.core.redact import public
from engine.results.held_out_rows import Row
from engine.results.history import StepReport
from engine.results.report.curves import curves, held_out
from engine.results.report.text import as_html, clipped, device_text, mapping_of, size_text, step_text, without_secrets
from engine.results.report.unfinished import Unfinished, notice, refresh
from engine.results.report.words import Words

_STYLE: Final = Path(__file__).with_name("report.css")
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MAX_ROWS: Final = 100
_SMALL_PIXELS: Final = 256
STRIP_LENGTH: Final = 12
"""Maximum number of images of earlier steps beside one validation image."""
STRIP_PIXELS: Final = 192
"""Maximum width and height of these images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A validation image, and the baseline's image of the same prompt and seed. PNG files."""

    prompt: str
    seed: int
    png: bytes
    without_png: bytes | None
    between: Sequence[tuple[int, bytes]] = ()
    """The image after earlier steps of the task: step and PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of the page."""

    words: Words
    """The words for what is trained."""
    title: str
    """The title: base model and dataset, in one line."""
    task: Mapping[str, Any]
    """The task as JSON."""
    history: Sequence[StepReport]
    """Every step of the chain so far."""
    pictures: Sequence[Picture]
    start_step: int
    """The global step at which this task began."""
    global_step: int
    """The global step that this task reached."""
    max_steps: int
    visits_per_step: int
    finished: bool
    """True if the whole training is finished, not only this task."""
    seconds: Mapping[str, float]
    """Seconds of the whole task by phase, in their order; a run counts up to the progress that the next one continued.
    Their sum is the wall time; `encode` and `train` give the images per second."""
    peak_memory_bytes: int
    skipped: Sequence[tuple[str, str]]
    """Name and reason of each image that was not trained on."""
    lineage: Sequence[Mapping[str, Any]]
    """The chain's tasks, this one last: `from_step`, `to_step`, `parent`, `changed`, `device`, `versions`."""
    checkpoint_digest: str | None
    """None without a result."""
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    held_out_losses: Sequence[Row] = ()
    """Every measurement of the chain so far."""
    unfinished: Unfinished | None = None
    """None for the report of a result."""


def render(report: Report) -> str:
    """Return the page as HTML. The same report gives the same text."""
    style = _STYLE.read_text(encoding="utf-8")
    sections = (_headline, _pictures, _held_out, _training, _timings, _chain, _task, _origin)
    body = "\n".join(section(report) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{refresh(report.unfinished)}<title>{as_html(public(report.title))}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _headline(report: Report) -> str:
    busy = f"Step {report.global_step:,} of {report.max_steps:,}"
    now = report.unfinished
    if now is not None:
        busy = f"{now.status.capitalize()}: step {report.global_step:,} of {report.max_steps:,}"
    status, pill = ("Finished", "pill done") if report.finished else (busy, "pill")
    own = f"this task: steps {report.start_step:,} to {report.global_step:,}"
    images = report.global_step * report.visits_per_step
    training = report.seconds.get("encode", 0.0) + report.seconds.get("train", 0.0)
    visits = (report.global_step - report.start_step) * report.visits_per_step
    rate = visits / training if visits and training > 0 else None
    memory = "of GPU memory" if report.device.get("type") == "cuda" else "of memory"
    tiles = [
        ("Steps", f"{report.global_step:,}", f"of {report.max_steps:,}"),
        ("Images seen", f"{images:,}", f"{report.visits_per_step:,} a step"),
        ("Wall time", duration_text(sum(report.seconds.values())), "this task"),
        ("Speed", "–" if rate is None else f"{rate:.3g}/s", "images, encoding included"),
        ("Peak", size_text(report.peak_memory_bytes), memory),
        ("Skipped", f"{len(report.skipped):,}", "image" if len(report.skipped) == 1 else "images"),
    ]
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f"""<header>
<p class="eyebrow">{as_html(report.words.title)} report</p>
<h1>{as_html(public(report.title))}</h1>
<p class="status"><span class="{pill}">{status}</span> <span>{own}</span></p>
{notice(report.unfinished)}<div class="track" role="img" aria-label="{busy}; {own}">{_track(report)}</div>
<dl class="card figures">{figures}</dl>
</header>"""


def _track(report: Report) -> str:
    """Return the bar of the whole training, with the part of each task."""
    own = report.start_step
    bounds = [*(start for start in _starts(report) if start < own), own]
    parts = [(start, end, "") for start, end in pairwise(bounds)]
    total = max(report.max_steps, report.global_step, 1)
    return "".join(
        f'<i{mark} style="left:{100 * start / total:.2f}%;width:{100 * (end - start) / total:.2f}%"></i>'
        for start, end, mark in [*parts, (own, report.global_step, ' class="own"')]
    )


def _pictures(report: Report) -> str:
    if not report.pictures and report.unfinished is not None:
        return '<section><h2>Validation images</h2><p class="note">None so far.</p></section>'
    if not report.pictures:
        return '<section><h2>Validation images</h2><p class="note">The task asks for none.</p></section>'
    widths = [_png_width(picture.png) for picture in report.pictures]
    small = " small" if max(widths) <= _SMALL_PIXELS else ""
    pairs = "\n".join(
        _pair(number, picture, report.words.trained) for number, picture in enumerate(report.pictures, start=1)
    )
    has_strip = any(picture.between for picture in report.pictures)
    below = "; below, the images after earlier steps of this task" if has_strip else ""
    latest = "The latest images so far. " if report.unfinished is not None else ""
    return f"""<section><h2>Validation images</h2>
<p class="note">{latest}The same prompt and seed, without {as_html(report.words.trained)} and with it{below}.</p>
<div class="pairs{small}">{pairs}</div></section>"""


def _pair(number: int, picture: Picture, trained: str) -> str:
    without = '<div class="missing">not drawn</div>'
    if picture.without_png is not None:
        without = _image(picture.without_png, f"Validation image {number} without {trained}")
    reach = ' tabindex="0"' if len(picture.prompt) > 200 else ""  # a long prompt scrolls, also by keyboard
    return f"""<figure class="card pair"><div class="sides">
<div><span class="side">Without</span>{without}</div>
<div><span class="side with">With {as_html(trained)}</span>\
{_image(picture.png, f"Validation image {number} with {trained}")}</div>
</div>{_strip(number, picture)}
<figcaption><p class="prompt" dir="auto"{reach}>{as_html(picture.prompt) or "(no prompt)"}</p>
<p class="seed">seed {picture.seed}</p></figcaption></figure>"""


def _strip(number: int, picture: Picture) -> str:
    frames = "".join(
        f"<li>{_image(png, f'Validation image {number} after step {step:,}')}<span>step {step:,}</span></li>"
        for step, png in picture.between
    )
    return f'<ol class="strip">{frames}</ol>' if frames else ""


def _image(png: bytes, label: str) -> str:
    return f'<img alt="{label}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _png_width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big") if png.startswith(b"\x89PNG") else 0


def _training(report: Report) -> str:
    return curves(report.history, _starts(report))


def _held_out(report: Report) -> str:
    return held_out(report.held_out_losses, _starts(report))


def _starts(report: Report) -> list[int]:
    """Return the global steps at which the chain's tasks began."""
    found = [mapping_of(entry).get("from_step") for entry in report.lineage]
    return sorted({step for step in found if type(step) is int and 0 <= step <= report.global_step})


def _timings(report: Report) -> str:
    longest = max([*report.seconds.values(), 1e-9])
    bars = "".join(
        f'<li><span>{as_html(name)}</span><b style="width:{100 * value / longest:.1f}%"></b>'
        f"<span>{duration_text(value)}</span></li>"
        for name, value in report.seconds.items()
    )
    rows = "".join(
        f"<dt>{as_html(clipped(name))}</dt><dd>{as_html(clipped(why))}</dd>" for name, why in report.skipped[:_MAX_ROWS]
    )
    more = len(report.skipped) - _MAX_ROWS
    rest = f'<p class="note">And {more:,} more.</p>' if more > 0 else ""
    steps = plural(report.global_step - report.start_step, "step")
    skipped = f'<dl class="facts">{rows}</dl>{rest}' if rows else '<p class="note">No image was skipped.</p>'
    return f"""<section><h2>This task</h2><div class="columns">
<div class="card"><h3>Time by phase</h3><ul class="bars">{bars}</ul>
<p class="note">{duration_text(sum(report.seconds.values()))} in total for {steps}; \
{size_text(report.peak_memory_bytes)} of memory at the peak.</p></div>
<div class="card"><h3>Skipped images</h3>{skipped}</div></div></section>"""


def _chain(report: Report) -> str:
    entries = [mapping_of(entry) for entry in report.lineage]
    pairs = enumerate(pairwise([{}, *entries]), start=1)
    rows = [_chain_row(k, before, entry, report.words.new) for k, (before, entry) in pairs]
    hidden = len(rows) - _MAX_ROWS
    note = f'<p class="note">The latest {_MAX_ROWS} of {len(rows):,} tasks.</p>' if hidden > 0 else ""
    return f"""<section><h2>The chain</h2>{note}
<div class="card"><table class="lineage"><thead><tr><th scope="col">Task</th><th scope="col">Steps</th>\
<th scope="col">Starts from</th><th scope="col">What changed</th><th scope="col">Device</th></tr></thead>
<tbody>{"".join(rows[max(0, hidden) :])}</tbody></table></div></section>"""


def _chain_row(number: int, before: Mapping[str, Any], entry: Mapping[str, Any], start: str) -> str:
    changed = dict(mapping_of(entry.get("changed")))
    if before:
        old, new = mapping_of(before.get("versions")), mapping_of(entry.get("versions"))
        changed |= {name: [old.get(name), new[name]] for name in new if old.get(name) != new[name]}
    changes = "".join(
        f"<li><code>{as_html(clipped(name))}</code> {as_html(' → '.join(clipped(value) for value in values))}</li>"
        for name, values in changed.items()
        if isinstance(values, list)
    )
    parent = entry.get("parent")
    cells = {
        "Task": f"{number:,}",
        "Steps": f"{step_text(entry.get('from_step'))} to {step_text(entry.get('to_step'))}",
        "Starts from": f"<code>{as_html(parent[:12])}</code>" if isinstance(parent, str) else as_html(start),
        "What changed": f'<ul class="changes">{changes}</ul>' if changes else "nothing",
        "Device": as_html(device_text(mapping_of(entry.get("device")))),
    }
    return (
        "<tr>" + "".join(f'<td data-label="{label}"><div>{cell}</div></td>' for label, cell in cells.items()) + "</tr>"
    )


def _task(report: Report) -> str:
    text = json.dumps(without_secrets(report.task), indent=2, ensure_ascii=False)
    return f'<section><h2>The task</h2><div class="card long"><pre>{as_html(text)}</pre></div></section>'


def _origin(report: Report) -> str:
    versions = "".join(
        f"<li>{as_html(name)} <b>{as_html(version)}</b></li>" for name, version in report.versions.items()
    )
    digest = report.checkpoint_digest
    checkpoint = f"<dt>Checkpoint</dt><dd><code>{as_html(digest)}</code></dd>\n" if digest is not None else ""
    return f"""<section><h2>Where it was made</h2><div class="card"><dl class="facts">
{checkpoint}<dt>Device</dt><dd>{as_html(device_text(report.device))}</dd>
<dt>Versions</dt><dd><ul class="versions">{versions}</ul></dd></dl></div></section>"""
