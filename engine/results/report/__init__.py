"""Render `report.html`, a job's result as one page for a person: no network, no script, no file beside it.

Prompts, names and everything in a checkpoint are untrusted: every text is escaped by `as_html`, and the page's policy
allows a browser to load only the images and clips in the page itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from engine.core.messages import duration_text, plural
from engine.core.redact import public
from engine.results.held_out_rows import Row
from engine.results.history import StepReport
from engine.results.outcome import shares_of
from engine.results.report.chain import chain, chain_time
from engine.results.report.curves import curves, held_out
from engine.results.report.earlier import Earlier, record
from engine.results.report.facts import Published, Setting, files, settings
from engine.results.report.pictures import Picture, TrainingImage, training_images, validation_images
from engine.results.report.text import as_html, clipped, device_text, mapping_of, size_text, without_folders
from engine.results.report.unfinished import Unfinished, notice, refresh
from engine.results.report.words import Words

_STYLE: Final = Path(__file__).with_name("report.css")
_POLICY: Final = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_MAX_ROWS: Final = 100


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
    warnings: Sequence[str] = ()
    """The warnings of the log."""
    held_out_losses: Sequence[Row] = ()
    """Every measurement of the chain so far."""
    unfinished: Unfinished | None = None
    """None for the report of a result."""
    earlier: Earlier = field(default_factory=Earlier)
    """The chain's tasks before this one."""
    training_images: Sequence[TrainingImage] = ()
    noun: str = "image"
    """The word for one sample of the dataset: `image`, `clip`."""
    num_images: int = 0
    """The number of images, or clips, in the dataset."""
    settings: Sequence[Setting] = ()
    """All keys of the task."""
    published: Sequence[Published] = ()
    """The files of the result; empty without one."""
    usage: str = ""
    """The model card's section on how to use them, in Markdown."""


def render(report: Report) -> str:
    """Return the page as HTML. The same report gives the same text."""
    style = _STYLE.read_text(encoding="utf-8")
    sections = (_headline, _pictures, _trained, _files, _held_out, _training, _timings, _chain, _task, _origin)
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
<main {_record(report)}>
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
        (f"{report.noun.capitalize()}s seen", f"{images:,}", f"{report.visits_per_step:,} a step"),
        ("Wall time", duration_text(sum(report.seconds.values())), _of_chain(report)),
        ("Speed", "–" if rate is None else f"{rate:.3g}/s", f"{report.noun}s, encoding included"),
        ("Peak", size_text(report.peak_memory_bytes), memory),
        ("Skipped", f"{len(report.skipped):,}", report.noun if len(report.skipped) == 1 else f"{report.noun}s"),
    ]
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f"""<header>
<p class="eyebrow">{as_html(report.words.title)} report</p>
<h1>{as_html(public(report.title))}</h1>
<p class="status"><span class="{pill}">{status}</span> <span>{own}</span></p>
{notice(report.unfinished)}<div class="track" role="img" aria-label="{busy}; {own}">{_track(report)}</div>
<dl class="card figures">{figures}</dl>
</header>"""


def _of_chain(report: Report) -> str:
    tasks = len(report.lineage)
    return f"this task; whole chain: {chain_time(_seconds(report), tasks)}" if tasks > 1 else "this task"


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
    return validation_images(
        report.pictures,
        report.words,
        step=report.global_step,
        start_step=report.start_step,
        is_whole=report.earlier.is_known,
        is_running=report.unfinished is not None,
        noun=report.noun,
    )


def _trained(report: Report) -> str:
    return training_images(report.training_images, report.num_images, report.noun)


def _files(report: Report) -> str:
    return files(report.published, report.usage)


def _training(report: Report) -> str:
    return curves(report.history, _starts(report))


def _held_out(report: Report) -> str:
    return held_out(report.held_out_losses, _starts(report), report.noun)


def _starts(report: Report) -> list[int]:
    """Return the global steps at which the chain's tasks began."""
    found = [mapping_of(entry).get("from_step") for entry in report.lineage]
    return sorted({step for step in found if type(step) is int and 0 <= step <= report.global_step})


def _timings(report: Report) -> str:
    longest, shares = max([*report.seconds.values(), 1e-9]), shares_of(report.seconds)
    bars = "".join(
        f'<li><span>{as_html(name)}</span><b style="width:{100 * value / longest:.1f}%"></b>'
        f"<span>{duration_text(value)} · {shares[name]:.0%}</span></li>"
        for name, value in report.seconds.items()
    )
    rows = "".join(
        f"<dt>{as_html(clipped(name))}</dt><dd>{as_html(clipped(why))}</dd>" for name, why in report.skipped[:_MAX_ROWS]
    )
    more = len(report.skipped) - _MAX_ROWS
    rest = f'<p class="note">And {more:,} more.</p>' if more > 0 else ""
    steps = plural(report.global_step - report.start_step, "step")
    skipped = f'<dl class="facts">{rows}</dl>{rest}' if rows else f'<p class="note">No {report.noun} was skipped.</p>'
    return f"""<section><h2>This task</h2>{_warnings(report)}<div class="columns">
<div class="card"><h3>Time by phase</h3><ul class="bars">{bars}</ul>
<p class="note">{duration_text(sum(report.seconds.values()))} in total for {steps}; \
{size_text(report.peak_memory_bytes)} of memory at the peak.</p></div>
<div class="card"><h3>Skipped {report.noun}s</h3>{skipped}</div></div></section>"""


def _warnings(report: Report) -> str:
    """Return a card with the warnings; nothing if there are none."""
    rows = "".join(f"<li>{as_html(without_folders(public(line)))}</li>" for line in report.warnings)
    return f'<div class="card"><h3>Warnings</h3><ul class="warnings">{rows}</ul></div>' if rows else ""


def _chain(report: Report) -> str:
    return chain(report.lineage, _seconds(report), report.words.new)


def _seconds(report: Report) -> list[float | None]:
    """Return the wall time of each of the chain's tasks; None where it is not known."""
    before = max(len(report.lineage) - 1, 0)
    known = [*report.earlier.seconds, *[None] * before][:before]
    return [*known, sum(report.seconds.values())]


def _record(report: Report) -> str:
    parent = mapping_of(report.lineage[-1]).get("parent") if report.lineage else None
    return record(report.checkpoint_digest, parent if isinstance(parent, str) else None, _seconds(report))


def _task(report: Report) -> str:
    return settings(report.task, report.settings)


def _origin(report: Report) -> str:
    versions = "".join(
        f"<li>{as_html(name)} <b>{as_html(version)}</b></li>" for name, version in report.versions.items()
    )
    digest = report.checkpoint_digest
    checkpoint = f"<dt>Checkpoint</dt><dd><code>{as_html(digest)}</code></dd>\n" if digest is not None else ""
    return f"""<section><h2>Where it was made</h2><div class="card"><dl class="facts">
{checkpoint}<dt>Device</dt><dd>{as_html(device_text(report.device))}</dd>
<dt>Versions</dt><dd><ul class="versions">{versions}</ul></dd></dl></div></section>"""
