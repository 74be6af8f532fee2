"""Survey the clips of a dataset and what of them is trained on. `clip_notes.py` says it in words."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from engine.core.errors import DatasetError
from engine.core.messages import plural
from engine.data.media.clip_facts import ClipFacts
from engine.job.job import Job

_SAME: Final = Fraction(1, 200)
"""The relative difference up to which frame rates are the same: 23.976 and 24 are, 24 and 25 are not."""
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
        return [one for one in self.moving if one.facts.file_rate and not is_same_rate(one.facts.file_rate, usual)]

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


def is_same_rate(rate: Fraction, other: float) -> bool:
    """Return whether two frame rates, in frames a second, are the same as far as motion is concerned."""
    return abs(rate / Fraction(other) - 1) < _SAME
