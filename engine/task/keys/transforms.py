"""The transforms of images before they are trained on: `transforms`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.task.key import Chain, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    center_crop: bool = key(False, "Centre crop", "Crop the centre instead of a random place.", chain=Chain.RECORDED)
    random_flip: bool = key(False, "Random flip", "Mirror half of the visits horizontally.", chain=Chain.RECORDED)
    buckets: bool = key(
        False,
        "Aspect-ratio buckets",
        "Show each image at the size nearest to its shape instead of a square, of about the resolution's area and "
        "with sides that are multiples of 64; each micro-batch has one size. "
        "[More about buckets](#aspect-ratio-buckets).",
        chain=Chain.AGREED_IF_SET,
    )
