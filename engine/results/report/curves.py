"""Draw curves over the steps of a training, as inline SVG text that stretches to the width of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.core.messages import plural
from engine.results import held_out_rows
from engine.results.history import StepReport

_MAX_DOTS: Final = 800
"""Maximum number of points of a curve; a longer one is drawn in at most `_BINS` bins."""
_BINS: Final = 400
_MAX_LINES: Final = 100
_LABEL_ROOM: Final = 0.16
"""Share of a chart's height for the label below a marked point: 31 pixels in the smallest chart."""
_SMALLEST_MOVE: Final = 1e-5
"""The smallest range to draw, relative to the values: a hundred times the rounding error of float32."""
LARGEST: Final = 1e15
"""The largest value to draw; arithmetic up to here is safe."""

Points = list[tuple[int, float]]


def curves(history: Sequence[StepReport], starts: list[int]) -> str:
    """Return the section with the training's charts. `starts` are the global steps at which the chain's tasks began."""
    rows = sorted(history, key=lambda row: row.step)
    loss = [(row.step, row.loss) for row in rows if _is_drawable(row.loss)]
    rate = [(row.step, row.learning_rate) for row in rows if _is_drawable(row.learning_rate)]
    norm = [(row.step, row.grad_norm) for row in rows if row.grad_norm is not None and _is_drawable(row.grad_norm)]
    missing = sum(row.grad_norm is None for row in rows)
    skips = f" The fp16 loss scaler skipped {plural(missing, 'step')}." if missing else ""
    return f"""<section><h2>Training</h2>
<p class="note">{_describe_starts(starts)}</p>
{_chart("loss", "Loss", loss, starts, noisy=True)}
<div class="columns">
{_chart("rate", "Learning rate", rate, starts, noisy=False)}
{_chart("norm", "Gradient norm", norm, starts, noisy=True, remark=f"Before clipping.{skips}")}
</div></section>"""


def held_out(rows: Sequence[held_out_rows.Row], starts: list[int], noun: str = "image") -> str:
    """Return the section with the held-out loss of samples called `noun`; empty if it was not measured."""
    if not rows:
        return ""
    curve = held_out_rows.latest_curve(rows)
    points = [(row.step, row.loss) for row in curve if row.loss is not None and _is_drawable(row.loss)]
    lowest = min(points, key=lambda point: (point[1], point[0]), default=None)
    remarks = [f"{plural(curve[-1].images, noun)} held out, the same timesteps and noise each time."]
    noise = ""
    if lowest:
        remarks.insert(0, f"Best at step {lowest[0]:,}: {_number(lowest[1])}.")
        noise = _by_noise(curve, lowest[0])
    if (raw := curve[-1].raw_loss) is not None and _is_drawable(raw):
        remarks.append(
            f"With the moving average of the weights, which is published; without it, {_number(raw)} at last."
        )
    if missing := len(curve) - len(points):
        remarks.append(f"{plural(missing, 'measurement')} not finite.")
    if older := len(rows) - len(curve):
        remarks.append(f"{plural(older, 'measurement')} of other {noun}s or timesteps not shown: they do not compare.")
    later = [start for start in starts if start > curve[0].step]
    chart = _chart("heldout", "Mean squared error", points, later, noisy=False, remark=" ".join(remarks), marked=lowest)
    return f"<section><h2>Held-out loss</h2>\n{chart}{noise}</section>"


def _by_noise(curve: Sequence[held_out_rows.Row], best: int) -> str:
    """Return how the loss changed from the first row to the best one, by amount of noise; empty if it did not."""
    first, lowest = curve[0], next(row for row in curve if row.step == best)
    parts = len(first.strata)
    if not parts or parts != len(lowest.strata) or first is lowest:
        return ""
    pairs = zip(first.strata, lowest.strata, strict=True)
    rows = "".join(f"<dt>{_noise_words(k, parts)}</dt><dd>{_fall(pair)}</dd>" for k, pair in enumerate(pairs, start=1))
    span = f"From step {first.step:,} to the best, step {best:,}, in {parts} equal parts of the trained timesteps"
    return f"""
<div class="card"><h3>By amount of noise</h3>
<p class="note">{span}: little noise shows texture and detail, much noise composition and colour.</p>
<dl class="facts">{rows}</dl></div>"""


def _noise_words(part: int, parts: int) -> str:
    """Return the label of a part of the timesteps. Parts are numbered from 1."""
    ends = {1: "least noise", parts: "most noise"}
    return f"Part {part} of {parts}" + (f", {ends[part]}" if part in ends else "")


def _fall(pair: tuple[float, float]) -> str:
    return f"{_number(pair[0])} → {_number(pair[1])}" if all(map(_is_drawable, pair)) else "?"


def _is_drawable(value: float) -> bool:
    return 0 <= value < LARGEST  # False for NaN, too


def _chart(
    name: str,
    title: str,
    points: Points,
    starts: list[int],
    *,
    noisy: bool,
    remark: str = "",
    marked: tuple[int, float] | None = None,
) -> str:
    """Return a chart with its texts. A noisy curve is smoothed; one with a marked point shows all its points."""
    if not points:
        return f'<figure class="card chart"><h3>{title}</h3><p class="note">No step to show. {remark}</p></figure>'
    half = min(max(2, len(points) // 40), (len(points) - 1) // 2) if noisy else 0
    line = _smoothed(points, half) if noisy else _extremes(points)
    plane = _plane(points, noisy=noisy, marked=marked)
    text = _describe(points, line, half, sum(value > plane.high for _, value in points))
    path = "M" + "L".join(plane.place(*point) for point in line) + "h0"  # h0: a single point is drawn, too
    alone = " alone" if len(line) == 1 else ""
    return f"""<figure class="card chart"><figcaption><h3>{title}</h3><p class="note">{text} {remark}</p></figcaption>
<svg role="img" aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{title} by step</title>
<desc id="{name}-text">{text} {remark if marked else _describe_starts(starts)}</desc>
{_grid(plane, starts)}
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">
{_raw(points, plane) if noisy else ""}<path class="line{alone}" d="{path}"/>{_marks(points, plane, marked)}</svg>\
{_label(plane, marked)}</svg></figure>"""


def _marks(points: Points, plane: _Plane, marked: tuple[int, float] | None) -> str:
    """Return all points, if there are few enough to tell them apart, and the marked one."""
    if marked is None:
        return ""
    dots = "".join(f"M{plane.place(*point)}h0" for point in points) if len(points) <= _MAX_LINES else ""
    return f'<path class="dots" d="{dots}"/><path class="best" d="M{plane.place(*marked)}h0"/>'


def _label(plane: _Plane, marked: tuple[int, float] | None) -> str:
    if marked is None:
        return ""
    x, y = plane.x(marked[0]) / 10, plane.y(marked[1]) / 10
    anchor = "start" if x < 10 else "end" if x > 90 else "middle"
    # Below the point: it is the lowest one, so the curve is above it.
    place = f'x="{x:.2f}%" y="{y:.2f}%" dy="1.6em" text-anchor="{anchor}"'
    return f'<text class="best" {place}>best: step {marked[0]:,}</text>'


@dataclass(frozen=True, slots=True)
class _Plane:
    """The range of a chart, mapped to 1000 x 1000 units. The drawing stretches to the page, its labels do not."""

    left: int
    right: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return 1000 * (step - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 1000 - 1000 * (min(value, self.high) - self.low) / (self.high - self.low)

    def place(self, step: int, value: float) -> str:
        return f"{self.x(step):.4g} {self.y(value):.4g}"


def _plane(points: Points, *, noisy: bool, marked: tuple[int, float] | None) -> _Plane:
    """Return the range of a chart.

    It begins at zero, unless the values are so close together that the curve would look flat. A few outliers do not
    extend the range of a noisy curve. With a marked point it begins below the lowest value, however far that is from
    zero, with room for a label there.
    """
    values = sorted(value for _, value in points)
    low, high = values[0], values[-1]
    typical = 1.3 * values[int(0.99 * (len(values) - 1))]
    if noisy and typical > 0 and high > 1.5 * typical:
        high = typical
    is_flat = high - low <= _SMALLEST_MOVE * high
    if is_flat or (marked is None and high - low >= 0.3 * high):
        low = 0.0
    top = high + 0.04 * (high - low) if high > 1e-12 else 1.0
    if marked is not None:
        low = min(low, (marked[1] - _LABEL_ROOM * top) / (1 - _LABEL_ROOM))
    return _Plane(points[0][0] - 1, points[-1][0], low, top)


def _bins(points: Points) -> list[Points]:
    """Return the points in at most `_BINS` groups of neighbours."""
    size = math.ceil(len(points) / _BINS)
    return [points[i : i + size] for i in range(0, len(points), size)]


def _smoothed(points: Points, half: int) -> Points:
    """Return the mean over each step and `half` steps on either side, at the middle of each bin and at both ends."""
    size = math.ceil(len(points) / _BINS)
    last = len(points) - 1
    result = []
    for i in sorted({0, last, *range(size // 2, last, size)}):
        near = [value for _, value in points[max(0, i - half) : i + half + 1]]
        result.append((points[i][0], math.fsum(near) / len(near)))
    return result


def _extremes(points: Points) -> Points:
    """Return the lowest and the highest point of each bin, in their order, and both ends."""
    found = {points[0], points[-1]}
    for part in _bins(points):
        found |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(found)


def _raw(points: Points, plane: _Plane) -> str:
    """Return a dot for each step, or if there are too many, a bar from the lowest to the highest of each bin."""
    if len(points) <= _MAX_DOTS:
        return f'<path class="raw" d="{"".join(f"M{plane.place(*point)}h0" for point in points)}"/>'
    bars = [(part[len(part) // 2][0], [value for _, value in part]) for part in _bins(points)]
    path = "".join(f"M{plane.place(step, min(values))}V{plane.y(max(values)):.4g}" for step, values in bars)
    return f'<path class="raw spread" d="{path}"/>'


def _grid(plane: _Plane, starts: list[int]) -> str:
    heights = _ticks(plane.low, plane.high, 4)
    rows = [(plane.y(value) / 10, label) for value, label in zip(heights, _labels(heights), strict=True)]
    columns = [(plane.x(step) / 10, f"{step:,.0f}") for step in _ticks(plane.left, plane.right, 5, whole=True)]
    begun = [plane.x(step) / 10 for step in starts if plane.left < step < plane.right]
    return "".join(
        [f'<line class="rule" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>' for y, _ in rows]
        + [f'<text x="-8" y="{y:.2f}%" dy=".32em" text-anchor="end">{label}</text>' for y, label in rows]
        + [f'<text x="{x:.2f}%" y="100%" dy="1.6em" text-anchor="middle">{label}</text>' for x, label in columns]
        + [f'<line class="start" x1="{x:.2f}%" x2="{x:.2f}%" y2="100%"/>' for x in begun[:_MAX_LINES]]
    )


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return about `most` round numbers from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    step = max(1.0, step) if whole else step
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Return the ticks as text, with enough digits to be different from each other."""
    labels: list[str] = []
    for digits in range(4, 17):
        labels = [_number(value, digits) for value in ticks]
        if len(set(labels)) == len(ticks):
            break
    return labels


def _describe(points: Points, line: Points, half: int, above: int) -> str:
    (first, last), drawn = (line[0], line[-1]), ""
    if first == last:
        return f"{_number(first[1])} at step {first[0]:,}."
    low, high = min(line, key=lambda point: point[1]), max(line, key=lambda point: point[1])
    if half:
        dots = (
            "dot: one step"
            if len(points) <= _MAX_DOTS
            else f"bar: lowest to highest of {len(_bins(points)[0]):,} steps"
        )
        drawn = f" Line: mean of the {2 * half + 1:,} steps around each (fewer at both ends); faint {dots}."
    outside = f" {plural(above, 'step')} above the chart." if above else ""
    ends = f"{_number(first[1])} at step {first[0]:,} to {_number(last[1])} at step {last[0]:,}"
    begin = "Smoothed, from" if half else "From"
    return f"{begin} {ends}, between {_number(low[1])} and {_number(high[1])}.{drawn}{outside}"


def _describe_starts(starts: list[int]) -> str:
    if len(starts) < 2:
        return "Every optimizer step so far."
    where = f", after step {' and '.join(f'{step:,}' for step in starts[1:])}" if len(starts) <= 4 else ""
    return f"Every optimizer step of the chain's {len(starts):,} tasks. Dashed: start of the next task{where}."


def _number(value: float, digits: int = 4) -> str:
    text = f"{value:,.0f}" if digits == 4 and 1000 <= value < 1e6 else f"{value:,.{digits}g}"
    return re.sub(r"e([-+])0*(?=[0-9])", lambda found: f"e{found[1].strip('+')}", text)
