"""Rows of the held-out loss: when one is due, at which timesteps it is measured, how it is stored. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from engine.core import rng
from engine.core.errors import CheckpointError
from engine.core.json_reader import dump_lines, parse_lines
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.plan.visits import MAX_VISITS

STRATA: Final = 4
"""The number of equal parts of the trained timesteps; every image is measured at one timestep of each."""
_MAX_STRATA: Final = 64
_MAX_ROWS: Final = 100_000
_RAW: Final = "raw_loss"
"""The key that only rows of a training with a moving average have."""
_CURVE: Final = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement of the held-out loss."""

    step: int
    """The global step after which it was measured; 0 is before the first step."""
    loss: float | None
    """The mean over all images and their timesteps; None if it was not finite."""
    strata: tuple[float, ...]
    """The mean in each part of the timesteps, from the least noise to the most; empty if `loss` is None."""
    images: int
    """Number of images that could be read."""
    curve: str
    """Losses are comparable if this is equal: the same images, captions, timesteps and noise."""
    raw_loss: float | None = None
    """The mean with the weights themselves, where `loss` is that of their moving average, which is published. None if
    there is no moving average, or the mean was not finite."""


def row_of(
    step: int, losses: Sequence[Sequence[float]], curve: str, *, raw: Sequence[Sequence[float]] | None = None
) -> Row:
    """Return the row of the images' losses, one per timestep each. It does not depend on the order of the images.

    Args:
        step: the step after which they were measured.
        losses: those with the weights that are published.
        curve: the curve of the measurement.
        raw: those with the trained weights, where their moving average is published.
    """
    means, raw_means = _means(losses), _means(raw) if raw else [math.nan]
    mean, raw_mean = (math.fsum(each) / len(each) for each in (means, raw_means))
    raw_loss = raw_mean if math.isfinite(raw_mean) else None
    if not math.isfinite(mean):
        return Row(step, None, (), len(losses), curve, raw_loss)
    return Row(step, mean, tuple(means), len(losses), curve, raw_loss)


def _means(losses: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over the images at each of their timesteps."""
    return [math.fsum(column) / len(losses) for column in zip(*losses, strict=True)]


def timesteps_of(image: int, timesteps: Timesteps, seed: int) -> list[int]:
    """Return the timesteps at which an image is measured, one in each stratum, regardless of the training's weights.

    A mean over stratified timesteps varies less than one over as many independent ones (Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1, stratify over a batch).
    """
    words = rng.words(seed, "held-out timestep", image * STRATA, STRATA)
    extent = timesteps.end - timesteps.begin
    bounds = [timesteps.begin + extent * k // STRATA for k in range(STRATA + 1)]
    return [
        bounds[k] + int(rng.below(words[k : k + 1, 0], max(1, bounds[k + 1] - bounds[k]))[0]) for k in range(STRATA)
    ]


def is_due(step: int, rows: Iterable[Row], *, curve: str, step_range: StepRange, interval: int | None) -> bool:
    """Return whether the loss is to be measured after this step and has not been yet.

    Args:
        step: step of the whole training.
        rows: the chain's rows so far.
        curve: the curve of the measurement.
        step_range: the task's steps. The loss is measured at both ends: before the first step and after the last.
        interval: number of steps between measurements, through the whole training; None measures only at the ends.
    """
    is_wanted = step in (step_range.start_step, step_range.stop_step) or (interval is not None and step % interval == 0)
    return is_wanted and not any(row.step == step and row.curve == curve for row in rows)


def num_due(rows: Sequence[Row], *, curve: str, step_range: StepRange, interval: int | None) -> int:
    """Return the number of measurements that are due in a task. Arguments as in `is_due`."""
    ends = {step_range.start_step, step_range.stop_step}
    due = sum(is_due(step, rows, curve=curve, step_range=step_range, interval=interval) for step in ends)
    if interval is not None:
        due += max(0, (step_range.stop_step - 1) // interval - step_range.start_step // interval)
    return due


def latest_curve(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are comparable with the last one, ordered by step."""
    return sorted((row for row in rows if row.curve == rows[-1].curve), key=lambda row: row.step)


def best(rows: Iterable[Row]) -> Row | None:
    """Return the row of the lowest loss, the earliest of equal ones; None if no loss is finite."""
    finite = [(row.loss, row.step, row) for row in rows if row.loss is not None]
    return min(finite, key=lambda one: one[:2])[2] if finite else None


def summary(rows: Iterable[Row], curve: str | None) -> tuple[float | None, int | None]:
    """Return the latest loss of a curve and the step of its lowest one; None for what does not exist."""
    own = [row for row in rows if row.curve == curve]
    lowest = best(own)
    return max(own, key=lambda row: row.step).loss if own else None, lowest.step if lowest else None


def dump(rows: Iterable[Row]) -> bytes:
    """Return a line with a JSON object for each row."""
    return dump_lines(
        {key: value for key, value in asdict(row).items() if key != _RAW or value is not None} for row in rows
    )


def parse(data: bytes) -> list[Row]:
    """Return the rows that `dump` wrote.

    Raises:
        CheckpointError: the bytes are malformed.
    """
    try:
        if (num_lines := data.count(b"\n")) > _MAX_ROWS:
            raise ValueError(f"{num_lines} rows")
        return [_row(value) for value in parse_lines(data)]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"the checkpoint's held-out losses are malformed ({error}); use another checkpoint"
        ) from None


def _row(value: Any) -> Row:
    if not isinstance(value, dict) or value.keys() - {_RAW} != {"step", "loss", "strata", "images", "curve"}:
        raise ValueError("a line is not a row of losses")
    raw = value.get(_RAW)
    step, loss, strata, images, curve = (value[key] for key in ("step", "loss", "strata", "images", "curve"))
    counts = all(type(count) is int and 0 <= count <= MAX_VISITS for count in (step, images))
    numbers = isinstance(strata, list) and len(strata) <= _MAX_STRATA
    numbers = numbers and all(map(_is_number, strata)) and all(each is None or _is_number(each) for each in (loss, raw))
    if not (counts and numbers and isinstance(curve, str) and _CURVE.fullmatch(curve)):
        raise ValueError(f"the row of step {repr(step)[:20]} is malformed")
    loss, raw = (None if each is None else float(each) for each in (loss, raw))
    return Row(step, loss, tuple(map(float, strata)), images, curve, raw)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
