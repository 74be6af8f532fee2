"""Aspect-ratio buckets: micro-batches of images of one size each, so that little of an image is cropped. No torch.

The sizes have about as many pixels as the square, and sides that are multiples of 64 (Podell et al. 2023,
arXiv:2307.01952, section 2.3 and appendix I). Clips are sorted by their number of frames as well. The bucket of a
micro-batch is a pure function of its number, like everything in the plan.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.core import rng
from engine.core.errors import TaskError
from engine.core.messages import plural
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.geometry import MAX_RESIZED_PIXELS, Size, UnreadableImage, covering
from engine.data.media.sample_names import OF_IMAGES, SampleNames
from engine.task.plan.extent import Extent, most_frames
from engine.task.plan.visits import Epochs, OrderedRow, Visit

STEP: Final = 64
"""Divisor of all sides: a VAE halves images three times, and a denoiser its latents up to three times more."""
_MAX_RATIO: Final = 4
"""The largest ratio of a bucket's longer side to its shorter one (appendix I of the paper)."""


def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """Return the sizes of the buckets, from the narrowest to the widest, with ratios from 1 : 4 to 4 : 1.

    For each width it is the largest height with an area of at most `resolution` squared, and the same with width and
    height exchanged.

    Raises:
        TaskError: the resolution is not a multiple of 64, is less than 128, or exceeds the size limit of images.
    """
    if resolution**2 > MAX_RESIZED_PIXELS:
        raise TaskError(
            f"train_args.resolution is {resolution}: images are resized to at most "
            f"{MAX_RESIZED_PIXELS:,} pixels; use a smaller one"
        )
    if resolution % STEP or resolution < 2 * STEP:
        below = max(2 * STEP, resolution // STEP * STEP)
        near = f"{below} or {below + STEP}" if resolution > below else f"{below}"
        raise TaskError(
            f"train_args.resolution is {resolution}: with transforms.buckets it must be a multiple of {STEP} and at "
            f"least {2 * STEP}, since all sides are multiples of {STEP}; try {near}"
        )
    found: set[Size] = set()
    for width in range(STEP, 2 * resolution + 1, STEP):
        height = resolution * resolution // width // STEP * STEP
        if max(width, height) <= _MAX_RATIO * min(width, height):
            found |= {(width, height), (height, width)}
    return tuple(sorted(found, key=lambda size: size[0] / size[1]))


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """Return the index in `sizes` of the size that crops the least off an image; the narrower of two equally good.

    `sizes` go from the narrowest to the widest. An image of ratio a keeps min(a / b, b / a) in a bucket of ratio b, so
    the border between two buckets is the geometric mean of their ratios. The comparison uses integers: which side an
    image on a border belongs to must not depend on the machine.
    """
    width, height = size

    def is_wider(index: int) -> bool:
        """Return whether the image is wider than the border between this bucket and the next one."""
        (w1, h1), (w2, h2) = sizes[index], sizes[index + 1]
        return width * width * h1 * h2 > height * height * w1 * w2

    return bisect_left(range(len(sizes) - 1), True, key=lambda index: not is_wider(index))


@dataclass(frozen=True, slots=True)
class Bucket:
    """One size and the rows that are shown at it."""

    extent: Extent
    rows: npt.NDArray[np.int64]
    """The bucket's rows of the dataset, ascending, repeats included: int64."""
    num_images: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of a dataset, without empty ones."""

    sizes: tuple[Size, ...]
    """All possible sizes of a frame, also those of empty buckets."""
    frame_counts: tuple[int, ...]
    """All possible numbers of frames, ascending: (1,) for images."""
    members: tuple[Bucket, ...]
    kept: float
    """The average share of an image that is shown, from 0 to 1."""
    kept_by_squares: float
    """The same share if all images were cropped to squares."""

    def target(self, extent: Extent) -> Extent:
        """Return the size at which a sample of the size `extent` is shown."""
        width, height = self.sizes[nearest(extent.size, self.sizes)]
        return Extent(width, height, most_frames(extent.frames, self.frame_counts))

    def lines(self, names: SampleNames = OF_IMAGES) -> list[str]:
        """Return lines for a person: the number of samples of each bucket; how much is cropped."""
        counts = ", ".join(f"{one.extent}: {one.num_images}" for one in self.members)
        return [
            f"buckets        {counts} {names.several}",
            f"cropped        {1 - self.kept:.1%} of {names.with_article} on average, "
            f"{1 - self.kept_by_squares:.1%} without buckets",
        ]

    def warnings(self, batch_size: int, names: SampleNames = OF_IMAGES) -> list[str]:
        """Return notes on what is allowed but likely a mistake."""
        small = sum(len(one.rows) < batch_size for one in self.members)
        if not small:
            return []
        return [
            f"{small} of {plural(len(self.members), 'bucket')} {'has' if small == 1 else 'have'} fewer "
            f"{names.several} than batch_size {batch_size}: their micro-batches show one more than once, and "
            "come up less than once an epoch; a smaller batch_size with more gradient_accumulation_steps mixes better"
        ]


def sort_into_buckets(
    dataset: ImageDataset, extents: Sequence[Extent], resolution: int, frame_counts: tuple[int, ...] = (1,)
) -> Buckets:
    """Sort every row into the bucket that crops the least off its image, with the most frames that a clip has.

    A sample whose header says that it cannot be shown goes into the fullest bucket, which has the most replacements
    for it.

    Args:
        dataset: the dataset.
        extents: the size of each of `dataset.image_indices()`; (0, 0, 0) if it is unreadable.
        resolution: the side of the square with the same area as the buckets.
        frame_counts: the numbers of frames of buckets, ascending, from 1 on.

    Raises:
        TaskError: there are no buckets for the resolution.
    """
    sizes = bucket_sizes(resolution)
    places = [_place(extent, sizes, frame_counts) for extent in extents]
    readable = [place for place in places if place is not None]
    square = (len(frame_counts) - 1) * len(sizes) + sizes.index((resolution, resolution))
    counts = np.bincount(readable or [square], minlength=len(sizes) * len(frame_counts))
    fullest = int(counts.argmax())
    by_image = dict(zip(dataset.image_indices(), (fullest if p is None else p for p in places), strict=True))
    by_row = np.array([by_image[dataset.image_index(row)] for row in range(len(dataset))])
    images = np.bincount(list(by_image.values()), minlength=len(counts))
    members = tuple(
        Bucket(
            Extent(*sizes[place % len(sizes)], frame_counts[place // len(sizes)]),
            np.flatnonzero(by_row == place),
            int(images[place]),
        )
        for place in np.flatnonzero(images).tolist()
    )
    shown = [(one.size, sizes[p % len(sizes)]) for one, p in zip(extents, places, strict=True) if p is not None]
    return Buckets(
        sizes=sizes,
        frame_counts=frame_counts,
        members=members,
        kept=_mean([_kept(size, target) for size, target in shown]),
        kept_by_squares=_mean([_kept(size, (1, 1)) for size, _ in shown]),
    )


def _place(extent: Extent, sizes: Sequence[Size], frame_counts: Sequence[int]) -> int | None:
    """Return the index of a sample's bucket, in the order of frames, then of sizes; None if it cannot be shown."""
    if extent.frames < 1:
        return None
    place = nearest(extent.size, sizes)
    try:
        covering(extent.size, sizes[place])
    except UnreadableImage:
        return None
    return frame_counts.index(most_frames(extent.frames, frame_counts)) * len(sizes) + place


def _kept(size: Size, target: Size) -> float:
    one, other = size[0] * target[1], size[1] * target[0]
    return min(one, other) / max(one, other)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


class BucketOrder:
    """The order of a dataset's rows in micro-batches of one bucket each. Random access.

    Each bucket has an endless stream of its rows, pass after pass in a fresh permutation. Its i-th micro-batch of B
    takes the visits [iB, (i + 1)B) of the stream. A bucket with n rows has had n e / B micro-batches before epoch e,
    rounded, so it is never more than B / 2 visits ahead or behind. The micro-batches of an epoch are permuted as well.
    """

    def __init__(self, *, seed: int, members: Sequence[Bucket], batch_size: int) -> None:
        self._seed = seed
        self._members = members
        self._batch_size = batch_size
        self._num_rows = sum(len(one.rows) for one in members)
        self._passes: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._epoch: _Epoch | None = None
        self._all = Epochs(seed, self._num_rows)

    def ordered_rows(self, start: int, count: int) -> Iterator[OrderedRow]:
        """Yield the rows of the visits number `start … start + count - 1`."""
        for number in range(start, start + count):
            micro_batch, offset = divmod(number, self._batch_size)
            bucket, index = self._micro_batch(micro_batch)
            one = self._members[bucket]
            turn, position = divmod(index * self._batch_size + offset, len(one.rows))
            yield OrderedRow(turn, position, int(one.rows[self._pass(bucket, turn)[position]]), one.extent)

    def candidates(self, visit: Visit) -> Iterator[int]:
        """Yield the visit's own row, then those after it in its bucket's pass, then all rows of any shape."""
        yield visit.sample
        bucket = next(index for index, one in enumerate(self._members) if one.extent == visit.bucket)
        rows, order = self._members[bucket].rows, self._pass(bucket, visit.epoch)
        for offset in range(1, len(order)):
            yield int(rows[order[(visit.position + offset) % len(order)]])
        yield from self._all.candidates(visit)

    def _micro_batch(self, number: int) -> tuple[int, int]:
        """Return the bucket of the micro-batch `number`, and its number among the micro-batches of that bucket."""
        if self._epoch is None or not 0 <= number - self._epoch.start < len(self._epoch.order):
            self._epoch = self._find_epoch(number)
        place = int(self._epoch.order[number - self._epoch.start])
        bucket = bisect_right(self._epoch.ends, place)
        return bucket, self._epoch.before[bucket] + place - (self._epoch.ends[bucket - 1] if bucket else 0)

    def _find_epoch(self, number: int) -> _Epoch:
        # The number of micro-batches before epoch e is N e / B, to within one for each bucket.
        first = max(0, number - len(self._members)) * self._batch_size // self._num_rows
        last = (number + len(self._members) + 1) * self._batch_size // self._num_rows + 1
        epochs = range(first, last + 1)
        epoch = epochs[bisect_right(epochs, number, key=lambda epoch: sum(self._before(epoch))) - 1]
        before, after = self._before(epoch), self._before(epoch + 1)
        ends = list(accumulate(then - now for now, then in zip(before, after, strict=True)))
        return _Epoch(sum(before), before, ends, rng.permutation(self._seed, "bucket order", epoch, ends[-1]))

    def _before(self, epoch: int) -> list[int]:
        """Return how many micro-batches each bucket has had before `epoch`."""
        size = self._batch_size
        return [(len(one.rows) * epoch + size // 2) // size for one in self._members]

    def _pass(self, bucket: int, turn: int) -> npt.NDArray[np.int64]:
        """Return the order of a bucket's rows in one of its passes."""
        if (bucket, turn) not in self._passes:
            # An epoch may cover parts of two passes of a bucket; older ones are dropped.
            own = sorted(known for known in self._passes if known[0] == bucket)
            for old in own[:-1]:
                del self._passes[old]
            # Named by the size, so that a bucket does not depend on the other buckets.
            stream = f"bucket {self._members[bucket].extent}"
            self._passes[bucket, turn] = rng.permutation(self._seed, stream, turn, len(self._members[bucket].rows))
        return self._passes[bucket, turn]


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The micro-batches of one epoch."""

    start: int
    """The number of the first one."""
    before: list[int]
    """Number of micro-batches of each bucket before the epoch."""
    ends: list[int]
    """Ends of the buckets' shares, if the shares are placed one after the other."""
    order: npt.NDArray[np.int64]
    """The order of the micro-batches, as positions among those shares."""
