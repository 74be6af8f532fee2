"""Survey the clips of a dataset and what of them is trained on, in lines and notes for a person and in counts.

A clip that is shown at another speed, in part, or not at all is always told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from engine.core.errors import DatasetError
from engine.core.messages import listing, plural
from engine.data.media.clip_facts import ClipFacts
from engine.job.job import Job

_SAME: Final = Fraction(1, 200)
"""The relative difference up to which frame rates are the same: 23.976 and 24 are, 24 and 25 are not."""
_FILM: Final = Fraction(1000, 1001)
_USUAL_RATES: Final = (
    *map(Fraction, (8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 120)),
    *(rate * _FILM for rate in (24, 30, 60, 120)),
)
_ROUNDED: Final = Fraction(1, 1000)
_MOST_RATES: Final = 6
"""The number of frame rates that a line shows."""
_FASTER: Final = 1.05
"""The factor from which on a clip counts as shown faster than it is."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A readable clip, and the number of its frames that a visit shows."""

    name: str
    facts: ClipFacts
    count: int
    """0 if the clip has too few frames and is skipped."""

    @property
    def called(self) -> str:
        """The clip's name with its number of frames."""
        return f"{self.name} ({'an image' if self.facts.is_still else plural(self.facts.frames, 'frame')})"


@dataclass(frozen=True, slots=True)
class Survey:
    """The clips of a job's dataset."""

    job: Job
    shown: tuple[Shown, ...]
    """The readable ones, images among them."""
    unreadable: tuple[str, ...]
    """Name and reason of each other one."""

    @classmethod
    def of(cls, job: Job) -> Survey | None:
        """Return the survey of a job; None if its samples have no frames."""
        if job.clips is None:
            return None
        named = [
            (job.dataset.name(index), clip) for index, clip in zip(job.dataset.image_indices(), job.clips, strict=True)
        ]
        return cls(
            job,
            tuple(Shown(name, clip, _count(job, clip)) for name, clip in named if isinstance(clip, ClipFacts)),
            tuple(f"{name} ({clip})" for name, clip in named if isinstance(clip, str)),
        )

    @property
    def moving(self) -> list[Shown]:
        """The clips that are no still images."""
        return [one for one in self.shown if not one.facts.is_still]

    @property
    def skipped(self) -> list[Shown]:
        """The clips and images with too few frames."""
        return [one for one in self.shown if not one.count]

    @property
    def shortened(self) -> list[Shown]:
        """The clips and images that are trained with fewer frames than `train_args.num_frames`."""
        return [one for one in self.shown if 0 < one.count < self.job.task.train_args.num_frames]

    @property
    def resampled(self) -> list[Shown]:
        """The clips of which `dataset.frame_rate` drops or repeats frames."""
        return [one for one in self.moving if one.facts.frames != one.facts.file_frames]

    @property
    def of_other_rate(self) -> list[Shown]:
        """The clips that keep a frame rate which is not the model's usual one."""
        usual = self.job.base.family.frame_rate
        if usual is None or self.job.task.dataset.frame_rate is not None:
            return []
        return [one for one in self.moving if one.facts.file_rate and not _is_same(one.facts.file_rate, usual)]

    @property
    def cut(self) -> list[tuple[Shown, int]]:
        """The clips with frames that no visit shows, and the number of these frames."""
        extraction = self.job.task.dataset.frame_extraction
        found = [(one, _never_shown(one, extraction)) for one in self.shown if one.count]
        return [(one, lost) for one, lost in found if lost]

    @property
    def sped_up(self) -> list[tuple[Shown, float]]:
        """The clips that `uniform` shows faster than they are, and how many times as fast."""
        if self.job.task.dataset.frame_extraction != "uniform":
            return []
        found = [(one, (one.facts.frames - 1) / (one.count - 1)) for one in self.shown if one.count > 1]
        return [(one, factor) for one, factor in found if factor >= _FASTER]

    def counts(self) -> dict[str, int]:
        """Return the counts for `result.json`."""
        moving = self.moving
        return {
            "clips": len(moving),
            "images": len(self.shown) - len(moving),
            "unreadable": len(self.unreadable),
            "too_short": len(self.skipped),
            "shortened": len(self.shortened),
            "resampled": len(self.resampled),
            "of_other_rate": len(self.of_other_rate),
            "variable_rate": sum(one.facts.has_variable_rate for one in moving),
            "turned": sum(one.facts.is_turned for one in moving),
            "sped_up": len(self.sped_up),
            "frames": sum(one.facts.frames for one in self.shown),
            "frames_never_shown": sum(lost for _, lost in self.cut),
        }

    def require_some(self) -> None:
        """Raise DatasetError if there are clips, and all have too few frames."""
        if self.shown and len(self.skipped) == len(self.shown):
            longest = max(one.facts.frames for one in self.shown)
            raise DatasetError(
                f"none of the {plural(len(self.shown), 'clip')} has the {self.job.task.train_args.num_frames} frames "
                f"of train_args.num_frames, the longest has {longest}: lower it, set transforms.buckets, which trains "
                "each with as many as it has, or take longer clips"
            )

    def lines(self) -> list[str]:
        """Return lines on what the clips are."""
        moving, stills = self.moving, len(self.shown) - len(self.moving)
        if not self.shown:
            return []
        images = f" and {plural(stills, 'image')}" if stills else ""
        lengths = sorted(one.facts.frames for one in moving) or [1]
        rate = self.job.task.dataset.frame_rate
        at = f" at {rate:g} frames a second" if rate else ""
        codecs = Counter(one.facts.codec for one in moving)
        lines = [
            f"clips          {plural(len(moving), 'clip')}{images}, {_span(lengths)} frames{at}; "
            f"each visit shows {_span(sorted({one.count for one in self.shown if one.count}))} frames",
            f"frame rates    {self._rates()}",
            f"codecs         {', '.join(f'{name} {count:,}' for name, count in sorted(codecs.items()))}",
        ]
        turned = [one.name for one in moving if one.facts.is_turned]
        if turned:
            lines.append(f"turned         {len(turned):,} as their files say: {listing(turned, str)}")
        return lines if moving else lines[:1]

    def notes(self) -> list[str]:
        """Return notes on clips that are skipped, or shown in part or at another speed."""
        found = [self._of_unreadable(), self._of_one_frame(), self._of_short(), self._of_shortened()]
        return [*filter(None, [*found, *self._of_rates(), self._of_cut()]), *self._of_speed()]

    def _rates(self) -> str:
        """Return the frame rates of the files with the number of clips of each, the most frequent first."""
        steady = [one.facts.file_rate for one in self.moving if not one.facts.has_variable_rate]
        rates = Counter(_rate(rate) for rate in steady if rate)
        common = rates.most_common(_MOST_RATES)
        others = sum(rates.values()) - sum(count for _, count in common)
        variable = sum(one.facts.has_variable_rate for one in self.moving)
        parts = [*common, ("other", others), ("variable", variable)]
        return ", ".join(f"{rate}: {count:,}" for rate, count in parts if count)

    def _of_unreadable(self) -> str:
        if not self.unreadable:
            return ""
        are = f"{plural(len(self.unreadable), 'clip')} cannot be read and {_is(self.unreadable)} skipped"
        return f"{are}: {listing(self.unreadable, str)}"

    def _of_one_frame(self) -> str:
        if not self.moving or self.job.task.train_args.num_frames > 1:
            return ""
        lengths, step = sorted(one.facts.frames for one in self.moving), self.job.base.family.frame_step
        usual = (lengths[len(lengths) // 2] - 1) // step * step + 1
        return (
            "train_args.num_frames is 1, so a single frame of each clip is trained on: set it to the number of frames "
            f"to learn motion from, such as {usual:,}, which half of these clips have"
        )

    def _of_short(self) -> str:
        if not self.skipped:
            return ""
        return (
            f"{len(self.skipped):,} of {plural(len(self.shown), 'clip')} {_is(self.skipped)} skipped, with fewer "
            f"frames than train_args.num_frames {self.job.task.train_args.num_frames}: {_listed(self.skipped)}; "
            "transforms.buckets would train each with as many as it has"
        )

    def _of_shortened(self) -> str:
        short = [one for one in self.shortened if not one.facts.is_still]
        if not short:
            return ""
        counts = sorted(Counter(one.count for one in short).items(), reverse=True)
        return (
            f"{plural(len(short), 'clip')} with fewer frames than train_args.num_frames "
            f"{self.job.task.train_args.num_frames} {_is(short)} trained with fewer: "
            f"{', '.join(f'{count:,} with {frames}' for frames, count in counts)}"
        )

    def _of_rates(self) -> list[str]:
        return [*self._of_resampled(), self._of_wanted_rate(), self._of_other_rate(), self._of_variable_rate()]

    def _of_resampled(self) -> list[str]:
        rate = self.job.task.dataset.frame_rate
        dropped = [one for one in self.resampled if one.facts.frames < one.facts.file_frames]
        repeated = [one for one in self.resampled if one.facts.frames > one.facts.file_frames]
        lines = []
        if dropped:
            share = [1 - one.facts.frames / one.facts.file_frames for one in dropped]
            lines.append(
                f"{_of(dropped, self.moving)} of {_rate_span(dropped)} frames a second {_is(dropped)} resampled to "
                f"{rate:g}, which drops {_percent(share)} of their frames"
            )
        if repeated:
            share = [1 - one.facts.file_frames / one.facts.frames for one in repeated]
            lines.append(
                f"{_of(repeated, self.moving)} of {_rate_span(repeated)} frames a second {_is(repeated)} resampled to "
                f"{rate:g}: {_percent(share)} of their frames are repeated ones, so motion is jerky"
            )
        return lines

    def _of_wanted_rate(self) -> str:
        rate, usual = self.job.task.dataset.frame_rate, self.job.base.family.frame_rate
        if rate is None or usual is None or _is_same(Fraction(rate), usual):
            return ""
        return (
            f"dataset.frame_rate is {rate:g}, and {usual:g} is usual for this model: what is drawn and then played at "
            f"{usual:g} frames a second moves {usual / rate:.2g} times as fast as the clips"
        )

    def _of_other_rate(self) -> str:
        others, usual = self.of_other_rate, self.job.base.family.frame_rate
        if not others:
            return ""
        return (
            f"{_of(others, self.moving)} {'has' if len(others) == 1 else 'have'} {_rate_span(others)} frames a second "
            f"where this model was trained on {usual:g}, so it would learn motion that is too fast or too slow: set "
            f"dataset.frame_rate to {usual:g} to resample them"
        )

    def _of_variable_rate(self) -> str:
        names = [one.name for one in self.moving if one.facts.has_variable_rate]
        if not names or self.job.task.dataset.frame_rate is not None:
            return ""
        have = plural(len(names), "clip has", "clips have")
        return (
            f"{have} a variable frame rate, and the frames are shown at equal intervals: set dataset.frame_rate to "
            f"go by their times: {listing(names, str)}"
        )

    def _of_cut(self) -> str:
        extraction, cut = self.job.task.dataset.frame_extraction, self.cut
        if not cut or extraction == "uniform" or self._of_one_frame():
            return ""
        share = [lost / one.facts.frames for one, lost in cut]
        what = "after the first ones are" if extraction == "head" else "after the last whole piece are"
        worst = max(cut, key=lambda pair: pair[1] / pair[0].facts.frames)[0]
        advice = "; chunk or random shows all of them" if extraction == "head" else ""
        return (
            f"of {plural(len(cut), 'clip')} the frames {what} never shown by frame_extraction {extraction}: "
            f"{_percent(share)} of each, most of {worst.called}{advice}"
        )

    def _of_speed(self) -> list[str]:
        if not self.sped_up:
            return []
        factors = [factor for _, factor in self.sped_up]
        mean = sum(factors) / len(factors)
        return [
            f"{plural(len(factors), 'clip')} {_is(factors)} shown faster than they are by frame_extraction uniform: "
            f"{mean:.1f} times on average, up to {max(factors):.1f} times"
        ]


def _count(job: Job, facts: ClipFacts) -> int:
    """Return how many frames of a clip a visit shows; 0 if it has too few."""
    if job.buckets:
        return job.buckets.target(facts.extent).frames
    wanted = job.task.train_args.num_frames
    return wanted if facts.frames >= wanted else 0


def _never_shown(one: Shown, extraction: str) -> int:
    """Return the number of a clip's frames that no visit shows."""
    if extraction in ("head", "uniform"):
        return one.facts.frames - one.count
    return one.facts.frames % one.count if extraction == "chunk" else 0


def _is_same(rate: Fraction, other: float) -> bool:
    return abs(rate / Fraction(other) - 1) < _SAME


def _rate(rate: Fraction) -> str:
    """Return a frame rate for a message: the usual one, if containers that round times explain the difference."""
    nearest = min(_USUAL_RATES, key=lambda usual: abs(usual - rate))
    return f"{float(nearest if abs(rate / nearest - 1) < _ROUNDED else rate):.5g}"


def _rate_span(shown: Sequence[Shown]) -> str:
    rates = sorted(one.facts.file_rate for one in shown if one.facts.file_rate)
    return " to ".join(dict.fromkeys(map(_rate, (rates[0], rates[-1]))))


def _span(values: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys(f"{value:,}" for value in (values[0], values[-1]))) if values else "none"


def _percent(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))


def _of(some: Sequence[Shown], among: Sequence[Shown]) -> str:
    return f"{len(some):,} of {plural(len(among), 'clip')}"


def _listed(shown: Sequence[Shown]) -> str:
    return listing([one.called for one in shown], str)


def _is(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
