"""Tell a person about the clips of a dataset: lines on what they are, notes on what of them is not shown as it is.

A clip that is shown at another speed, in part, or not at all is always told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from engine.core.messages import listing, plural
from engine.job.advice.clips import Shown, Survey, is_same_rate

_FILM: Final = Fraction(1000, 1001)
_USUAL_RATES: Final = (
    *map(Fraction, (8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 120)),
    *(rate * _FILM for rate in (24, 30, 60, 120)),
)
_ROUNDED: Final = Fraction(1, 1000)
"""The relative difference from a usual rate that comes from a container's rounding of times."""
_MOST_RATES: Final = 6
"""The number of frame rates that a line shows."""


def lines(survey: Survey) -> list[str]:
    """Return lines on what the clips are."""
    moving, stills = survey.moving, len(survey.shown) - len(survey.moving)
    if not survey.shown:
        return []
    images = f" and {plural(stills, 'image')}" if stills else ""
    lengths = sorted(one.facts.frames for one in moving) or [1]
    rate = survey.job.task.dataset.frame_rate
    at = f" at {rate:g} frames a second" if rate else ""
    codecs = Counter(one.facts.codec for one in moving)
    found = [
        f"clips          {plural(len(moving), 'clip')}{images}, {_frames(lengths)}{at}; "
        f"each visit shows {_frames(sorted({one.count for one in survey.shown if one.count}))}",
        f"frame rates    {_rates(survey)}",
        f"codecs         {', '.join(f'{name} {count:,}' for name, count in sorted(codecs.items()))}",
    ]
    turned = [one.name for one in moving if one.facts.is_turned]
    if turned:
        found.append(f"turned         {len(turned):,} as their files say: {listing(turned, str)}")
    return found if moving else found[:1]


def notes(survey: Survey) -> list[str]:
    """Return notes on clips that are skipped, or shown in part or at another speed."""
    found = [_of_unreadable(survey), _of_one_frame(survey), _of_short(survey), _of_shortened(survey)]
    return [*filter(None, [*found, *_of_rates(survey), _of_cut(survey)]), *_of_speed(survey)]


def _rates(survey: Survey) -> str:
    """Return the frame rates of the files with the number of clips of each, the most frequent first."""
    steady = [one.facts.file_rate for one in survey.moving if not one.facts.has_variable_rate]
    rates = Counter(_rate(rate) for rate in steady if rate)
    common = rates.most_common(_MOST_RATES)
    others = sum(rates.values()) - sum(count for _, count in common)
    variable = sum(one.facts.has_variable_rate for one in survey.moving)
    parts = [*common, ("other", others), ("variable", variable)]
    return ", ".join(f"{rate}: {count:,}" for rate, count in parts if count)


def _of_unreadable(survey: Survey) -> str:
    if not survey.unreadable:
        return ""
    are = f"{plural(len(survey.unreadable), 'clip')} cannot be read and {_is(survey.unreadable)} skipped"
    return f"{are}: {listing(survey.unreadable, str)}"


def _of_one_frame(survey: Survey) -> str:
    if not survey.moving or survey.job.task.train_args.num_frames > 1:
        return ""
    lengths, step = sorted(one.facts.frames for one in survey.moving), survey.job.base.family.frame_step
    usual = (lengths[len(lengths) // 2] - 1) // step * step + 1
    return (
        "train_args.num_frames is 1, so a single frame of each clip is trained on: set it to the number of frames "
        f"to learn motion from, such as {usual:,}, which half of these clips have"
    )


def _of_short(survey: Survey) -> str:
    if not survey.skipped:
        return ""
    return (
        f"{len(survey.skipped):,} of {plural(len(survey.shown), 'clip')} {_is(survey.skipped)} skipped, with fewer "
        f"frames than train_args.num_frames {survey.job.task.train_args.num_frames}: {_listed(survey.skipped)}; "
        "transforms.buckets would train each with as many as it has"
    )


def _of_shortened(survey: Survey) -> str:
    short = [one for one in survey.shortened if not one.facts.is_still]
    if not short:
        return ""
    counts = sorted(Counter(one.count for one in short).items(), reverse=True)
    parts = [f"{count:,} with {_frames([frames])}" for frames, count in counts]
    return (
        f"{plural(len(short), 'clip')} with fewer frames than train_args.num_frames "
        f"{survey.job.task.train_args.num_frames} {_is(short)} trained with fewer: "
        f"{', '.join(parts)}"
    )


def _of_rates(survey: Survey) -> list[str]:
    return [*_of_resampled(survey), _of_wanted_rate(survey), _of_other_rate(survey), _of_variable_rate(survey)]


def _of_resampled(survey: Survey) -> list[str]:
    rate = survey.job.task.dataset.frame_rate
    dropped = [one for one in survey.resampled if one.facts.frames < one.facts.file_frames]
    repeated = [one for one in survey.resampled if one.facts.frames > one.facts.file_frames]
    lines = []
    if dropped:
        share = [1 - one.facts.frames / one.facts.file_frames for one in dropped]
        lines.append(
            f"{_of(dropped, survey.moving)} of {_rate_span(dropped)} frames a second {_is(dropped)} resampled to "
            f"{rate:g}, which drops {_percent(share)} of their frames"
        )
    if repeated:
        share = [1 - one.facts.file_frames / one.facts.frames for one in repeated]
        lines.append(
            f"{_of(repeated, survey.moving)} of {_rate_span(repeated)} frames a second {_is(repeated)} resampled to "
            f"{rate:g}: {_percent(share)} of their frames are repeated ones, so motion is jerky"
        )
    return lines


def _of_wanted_rate(survey: Survey) -> str:
    rate, usual = survey.job.task.dataset.frame_rate, survey.job.base.family.frame_rate
    if rate is None or usual is None or is_same_rate(Fraction(rate), usual):
        return ""
    return (
        f"dataset.frame_rate is {rate:g}, and {usual:g} is usual for this model: what is drawn and then played at "
        f"{usual:g} frames a second moves {usual / rate:.4g} times as fast as the clips"
    )


def _of_other_rate(survey: Survey) -> str:
    others, usual = survey.of_other_rate, survey.job.base.family.frame_rate
    if not others:
        return ""
    return (
        f"{_of(others, survey.moving)} {'has' if len(others) == 1 else 'have'} {_rate_span(others)} frames a second "
        f"where this model was trained on {usual:g}, so it would learn motion that is too fast or too slow: set "
        f"dataset.frame_rate to {usual:g} to resample them"
    )


def _of_variable_rate(survey: Survey) -> str:
    names = [one.name for one in survey.moving if one.facts.has_variable_rate]
    if not names or survey.job.task.dataset.frame_rate is not None:
        return ""
    have = plural(len(names), "clip has", "clips have")
    return (
        f"{have} a variable frame rate, and the frames are shown at equal intervals: set dataset.frame_rate to "
        f"go by their times: {listing(names, str)}"
    )


def _of_cut(survey: Survey) -> str:
    extraction, cut = survey.job.task.dataset.frame_extraction, survey.cut
    if not cut or extraction == "uniform" or _of_one_frame(survey):
        return ""
    share = [lost / one.facts.frames for one, lost in cut]
    what = "after the first ones are" if extraction == "head" else "after the last whole piece are"
    worst = max(cut, key=lambda pair: pair[1] / pair[0].facts.frames)[0]
    advice = (
        "; random shows all of them, chunk all but a remainder shorter than a visit" if extraction == "head" else ""
    )
    return (
        f"of {plural(len(cut), 'clip')} the frames {what} never shown by frame_extraction {extraction}: "
        f"{_percent(share)} of each, most of {worst.called}{advice}"
    )


def _of_speed(survey: Survey) -> list[str]:
    if not survey.sped_up:
        return []
    factors = [factor for _, factor in survey.sped_up]
    mean = sum(factors) / len(factors)
    return [
        f"{plural(len(factors), 'clip')} {_is(factors)} shown faster than they are by frame_extraction uniform: "
        f"{mean:.1f} times on average, up to {max(factors):.1f} times"
    ]


def _rate(rate: Fraction) -> str:
    """Return a frame rate for a message: the usual one, if containers that round times explain the difference."""
    nearest = min(_USUAL_RATES, key=lambda usual: abs(usual - rate))
    return f"{float(nearest if abs(rate / nearest - 1) < _ROUNDED else rate):.5g}"


def _rate_span(shown: Sequence[Shown]) -> str:
    rates = sorted(one.facts.file_rate for one in shown if one.facts.file_rate)
    return " to ".join(dict.fromkeys(map(_rate, (rates[0], rates[-1]))))


def _frames(counts: Sequence[int]) -> str:
    """Return the range of ascending numbers of frames in words."""
    span = " to ".join(dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1]))) if counts else "no"
    return f"{span} {'frame' if span == '1' else 'frames'}"


def _percent(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))


def _of(some: Sequence[Shown], among: Sequence[Shown]) -> str:
    return f"{len(some):,} of {plural(len(among), 'clip')}"


def _listed(shown: Sequence[Shown]) -> str:
    return listing([one.called for one in shown], str)


def _is(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
