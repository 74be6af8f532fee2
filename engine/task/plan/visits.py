"""The visits of a training: which row each one sees, and its random draws. Pure functions.

A training is one endless stream of visits over epochs, each a fresh permutation of the dataset. Optimizer step k takes
the visits [k x K x B, (k+1) x K x B): K canonical micro-batches of B. Nothing here depends on where the stream is cut
into tasks, on how many processes share the micro-batches out, or on what was drawn before.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from engine.core import rng
from engine.task.plan.timesteps import Timesteps

MAX_VISITS: Final = 2**63 - 1
"""The greatest number of visits: they are numbered with 64 bits."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One sample seen once. `number` counts from the start of the whole training and addresses all its randomness."""

    number: int
    epoch: int
    """With buckets the number of the pass over its own bucket."""
    position: int
    """Place in the epoch's permutation, from which an unreadable image's replacement is searched for."""
    sample: int
    flip: bool
    crop_words: tuple[int, int]
    """Raw 64-bit words for the vertical and the horizontal crop position."""
    caption_word: int
    timestep: int
    drop_caption: bool = False
    """Whether the visit has an empty caption."""
    bucket: tuple[int, int] | None = None
    """(width, height) in pixels of what all visits of its micro-batch show; None is the square of the resolution."""

    def size(self, resolution: int) -> tuple[int, int]:
        """(width, height) in pixels of what it shows."""
        return self.bucket or (resolution, resolution)


@dataclass(frozen=True, slots=True)
class Slot:
    """What the order of the rows says of one visit: the fields of `Visit` with these names."""

    epoch: int
    position: int
    sample: int
    bucket: tuple[int, int] | None = None


class Order(Protocol):
    """Which row each visit of a training sees: an endless stream with random access."""

    def slots(self, start: int, count: int) -> Iterator[Slot]:
        """Those of the visits number `start … start + count - 1`."""
        ...

    def candidates(self, visit: Visit) -> Iterator[int]:
        """The visit's own row, then those that take its place one after the other, where it is unreadable."""
        ...


class Epochs:
    """Each epoch a fresh permutation of all rows. Remembers only the permutations in use."""

    def __init__(self, seed: int, num_rows: int) -> None:
        self._seed = seed
        self._num_rows = num_rows
        self._permutations: dict[int, Sequence[int]] = {}

    def permutation(self, epoch: int) -> Sequence[int]:
        """The order of the rows in `epoch`."""
        if epoch not in self._permutations:
            for old in sorted(self._permutations)[:-1]:  # a window may straddle two epochs; memory holds no more
                del self._permutations[old]
            # An array gives ints as a list does, and keeps a million of them in 8 MB instead of 40.
            order = rng.permutation(self._seed, "permutation", epoch, self._num_rows)
            self._permutations[epoch] = array("q", order.tobytes())
        return self._permutations[epoch]

    def slots(self, start: int, count: int) -> Iterator[Slot]:
        for number in range(start, start + count):
            epoch, position = divmod(number, self._num_rows)
            yield Slot(epoch, position, self.permutation(epoch)[position])

    def candidates(self, visit: Visit) -> Iterator[int]:
        order = self.permutation(visit.epoch)
        for offset in range(len(order)):
            yield order[(visit.position + offset) % len(order)]


class VisitStream:
    """The endless stream of visits of one training. Random access."""

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
        """`timesteps` None draws all `num_train_timesteps` alike; `caption_dropout` is a probability; `order` None is
        a fresh permutation of all rows in each epoch."""
        self.seed = seed
        self.order = order or Epochs(seed, num_rows)
        self.random_flip = random_flip
        self.timesteps = timesteps or Timesteps(0, num_train_timesteps)
        self.caption_dropout = caption_dropout

    def visits(self, start: int, count: int) -> Iterator[Visit]:
        """The visits number `start … start + count - 1`."""
        flips = rng.below(rng.words(self.seed, "flip", start, count)[:, 0], 2)
        crops = rng.words(self.seed, "crop", start, count)
        captions = rng.words(self.seed, "caption", start, count)
        timesteps = self.timesteps.draw(rng.words(self.seed, "timestep", start, count)[:, 0])
        dropped = [False] * count
        if self.caption_dropout:
            draws = rng.words(self.seed, "caption dropout", start, count)[:, 0]
            dropped = [bool(draw) for draw in rng.fractions(draws) < self.caption_dropout]
        for i, slot in enumerate(self.order.slots(start, count)):
            yield Visit(
                number=start + i,
                epoch=slot.epoch,
                position=slot.position,
                sample=slot.sample,
                flip=self.random_flip and bool(flips[i]),
                crop_words=(int(crops[i, 0]), int(crops[i, 1])),
                caption_word=int(captions[i, 0]),
                timestep=int(timesteps[i]),
                drop_caption=dropped[i],
                bucket=slot.bucket,
            )

    def tag_order(self, number: int, length: int) -> list[int]:
        """The order in which visit `number` has the `length` tags of its caption."""
        return rng.permutation(self.seed, "tag order", number, length).tolist()  # type: ignore[no-any-return]
