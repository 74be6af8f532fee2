"""The visits of a training: the row of the dataset that each one uses, and its random draws.

A training is an endless stream of visits over epochs; each epoch is a new permutation of the dataset. Optimizer step k
uses the visits [k x K x B, (k+1) x K x B): K micro-batches of B visits each. A visit is a function of the seed and its
number only. It does not depend on where the stream is cut into tasks, on the number of processes that share the
micro-batches, or on earlier draws.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from engine.core import rng
from engine.task.plan.extent import Extent
from engine.task.plan.timesteps import Timesteps

MAX_VISITS: Final = 2**63 - 1
"""The largest number of visits: they are numbered with 64 bits."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One use of one sample in training."""

    number: int
    """The visit's number from the start of the whole training, and the address of all its random numbers."""
    epoch: int
    """The number of the epoch; with buckets, of the pass over the visit's bucket."""
    position: int
    """The position in the epoch's permutation; the search for a replacement of an unreadable image starts there."""
    sample: int
    """The row of the dataset."""
    flip: bool
    crop_words: tuple[int, int]
    """Raw 64-bit words for the vertical and the horizontal crop position."""
    caption_word: int
    timestep: int
    drop_caption: bool = False
    """True if the visit has an empty caption."""
    bucket: Extent | None = None
    """The size of all samples in the visit's micro-batch; None is the task's (`TrainArgs.extent`)."""
    clip_word: int = 0
    """A raw 64-bit word for the first frame of a clip."""


@dataclass(frozen=True, slots=True)
class OrderedRow:
    """The fields of a `Visit` that an `Order` decides, under the same names."""

    epoch: int
    position: int
    sample: int
    bucket: Extent | None = None


class Order(Protocol):
    """The order of rows in a training: an endless sequence with random access."""

    def ordered_rows(self, start: int, count: int) -> Iterator[OrderedRow]:
        """Yield the rows of the visits numbered `start` to `start + count - 1`."""
        ...

    def candidates(self, visit: Visit) -> Iterator[int]:
        """Yield the visit's row, then its replacements, which are tried in this order if a row is unreadable."""
        ...


class Epochs:
    """The order without buckets: each epoch is a new permutation of all rows. Memory holds at most two of them."""

    def __init__(self, seed: int, num_rows: int) -> None:
        self._seed = seed
        self._num_rows = num_rows
        self._permutations: dict[int, Sequence[int]] = {}

    def permutation(self, epoch: int) -> Sequence[int]:
        """Return the order of the rows in an epoch."""
        if epoch not in self._permutations:
            for old in sorted(self._permutations)[:-1]:  # a window may span two epochs
                del self._permutations[old]
            # An array returns ints like a list, and stores a million of them in 8 MB instead of 40.
            order = rng.permutation(self._seed, "permutation", epoch, self._num_rows)
            self._permutations[epoch] = array("q", order.tobytes())
        return self._permutations[epoch]

    def ordered_rows(self, start: int, count: int) -> Iterator[OrderedRow]:
        for number in range(start, start + count):
            epoch, position = divmod(number, self._num_rows)
            yield OrderedRow(epoch, position, self.permutation(epoch)[position])

    def candidates(self, visit: Visit) -> Iterator[int]:
        order = self.permutation(visit.epoch)
        for offset in range(len(order)):
            yield order[(visit.position + offset) % len(order)]


class VisitStream:
    """The endless stream of visits of one training, with random access."""

    def __init__(
        self,
        *,
        seed: int,
        num_rows: int,
        random_flip: bool,
        num_train_timesteps: int,
        timesteps: Timesteps | None = None,
        caption_dropout: float = 0.0,
        order: Order | None = None,
    ) -> None:
        """Create the stream.

        Args:
            seed: the task's seed.
            num_rows: the rows of the dataset, repeats included.
            random_flip: True mirrors half of the visits.
            num_train_timesteps: the model's number of timesteps.
            timesteps: None draws all `num_train_timesteps` uniformly.
            caption_dropout: the probability that a visit has an empty caption.
            order: None makes each epoch a new permutation of all rows.
        """
        self.seed = seed
        self.order = order or Epochs(seed, num_rows)
        self.random_flip = random_flip
        self.timesteps = timesteps or Timesteps(0, num_train_timesteps)
        self.caption_dropout = caption_dropout

    def visits(self, start: int, count: int) -> Iterator[Visit]:
        """Yield the visits number `start` to `start + count - 1`."""
        flips = rng.below(rng.words(self.seed, "flip", start, count)[:, 0], 2)
        crops = rng.words(self.seed, "crop", start, count)
        captions = rng.words(self.seed, "caption", start, count)
        clips = rng.words(self.seed, "clip", start, count)
        timesteps = self.timesteps.draw(rng.words(self.seed, "timestep", start, count)[:, 0])
        dropped = [False] * count
        if self.caption_dropout:
            draws = rng.words(self.seed, "caption dropout", start, count)[:, 0]
            dropped = [bool(draw) for draw in rng.fractions(draws) < self.caption_dropout]
        for i, row in enumerate(self.order.ordered_rows(start, count)):
            yield Visit(
                number=start + i,
                epoch=row.epoch,
                position=row.position,
                sample=row.sample,
                flip=self.random_flip and bool(flips[i]),
                crop_words=(int(crops[i, 0]), int(crops[i, 1])),
                caption_word=int(captions[i, 0]),
                timestep=int(timesteps[i]),
                drop_caption=dropped[i],
                bucket=row.bucket,
                clip_word=int(clips[i, 0]),
            )

    def tag_order(self, number: int, length: int) -> list[int]:
        """Return the order of the caption's `length` tags in visit `number`: a permutation of range(length)."""
        return rng.permutation(self.seed, "tag order", number, length).tolist()  # type: ignore[no-any-return]
