"""The plan: which steps a task trains and what each of them visits, as pure functions.

A training is one endless stream of visits over epochs, each a fresh permutation of the dataset. Optimizer step k takes
the visits [k x K x B, (k+1) x K x B): K canonical micro-batches of B. Nothing here depends on where the stream is cut
into tasks, on how many processes share the micro-batches out, or on what was drawn before.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from engine.core import rng
from engine.core.errors import TaskError
from engine.task.task import TrainArgs, Validation

MAX_VISITS: Final = 2**63 - 1
"""Visits are numbered with 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Where a task lies in the whole training; all counts in optimizer steps but for the two sizes."""

    num_rows: int
    batch_size: int
    micro_batches: int
    """K = processes x gradient accumulation: micro-batches per optimizer step."""
    start_step: int
    stop_step: int
    max_steps: int

    @property
    def visits_per_step(self) -> int:
        return self.batch_size * self.micro_batches

    @property
    def steps_per_epoch(self) -> int:
        return _ceil_div(self.num_rows, self.visits_per_step)

    @property
    def finishes(self) -> bool:
        """Whether the task ends the whole training."""
        return self.stop_step >= self.max_steps

    @property
    def num_steps(self) -> int:
        return self.stop_step - self.start_step


def schedule(args: TrainArgs, *, num_rows: int, processes: int, start_step: int) -> Schedule:
    """The slice of the whole training that a task trains, from `start_step` to min(start_step + num, max).

    A checkpoint that already lies beyond `max` gives an empty slice that finishes.

    Raises:
        TaskError: more visits than can be addressed.
    """
    micro_batches = processes * args.gradient_accumulation_steps
    steps_per_epoch = _ceil_div(num_rows, args.batch_size * micro_batches)
    num_steps = args.num_train_steps or args.num_train_epochs * steps_per_epoch
    max_steps = args.max_train_steps or args.max_train_epochs * steps_per_epoch
    stop_step = max(start_step, min(start_step + num_steps, max_steps))
    if stop_step * args.batch_size * micro_batches > MAX_VISITS:
        raise TaskError(
            "train_args: so many steps of so many images are too many to count; "
            "give a smaller batch_size, gradient_accumulation_steps or number of steps"
        )
    return Schedule(
        num_rows=num_rows,
        batch_size=args.batch_size,
        micro_batches=micro_batches,
        start_step=start_step,
        stop_step=stop_step,
        max_steps=max_steps,
    )


def validation_interval(validation: Validation, schedule: Schedule) -> int | None:
    """After which multiples of optimizer steps a training is validated in between; None: nowhere.

    Steps are counted from the start of the whole training, so that it does not matter where a chain is cut.
    """
    if validation.every_n_steps is not None:
        return validation.every_n_steps
    if validation.every_n_epochs is not None:
        return validation.every_n_epochs * schedule.steps_per_epoch
    return None


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def base_learning_rate(args: TrainArgs, micro_batches: int) -> float:
    """The learning rate before the schedule's factor: x K x B with `scale_lr`."""
    return args.learning_rate * (micro_batches * args.batch_size if args.scale_lr else 1)


def base_text_encoder_rate(args: TrainArgs, micro_batches: int) -> float:
    """The same for the text encoders' LoRA."""
    own = args.text_encoder_learning_rate
    return base_learning_rate(args if own is None else replace(args, learning_rate=own), micro_batches)


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


@dataclass(frozen=True, slots=True)
class Timesteps:
    """Which timesteps are drawn, and how often: those of [begin, end), all alike unless there are `weights`."""

    begin: int
    end: int
    weights: tuple[float, ...] = ()
    """Of each timestep of [begin, end); positive."""

    def draw(self, words: rng.Words) -> npt.NDArray[np.int64]:
        """A timestep for each raw word: int64, the shape of `words`."""
        drawn: npt.NDArray[np.int64]
        if not self.weights:
            drawn = rng.below(words, self.end - self.begin) + self.begin
            return drawn
        # Inverse transform sampling; cumsum adds in order, so that every machine has the same bounds.
        bounds = np.cumsum(np.array(self.weights, dtype=np.float64))
        found = np.searchsorted(bounds, rng.fractions(words) * bounds[-1], side="right")
        # a product that was rounded up to the last bound belongs to the last timestep
        drawn = np.minimum(found, len(bounds) - 1).astype(np.int64) + self.begin
        return drawn


def timesteps(args: TrainArgs, num_train_timesteps: int) -> Timesteps:
    """What the task says about timesteps, of a model with `num_train_timesteps`.

    `timestep_bias` is that of Diffusers' text-to-image examples (`generate_timestep_weights`): the earliest
    or latest `portion` of all timesteps, or those of [`begin`, `end`), are drawn `multiplier` times as often as the
    others, with no correction of the loss. That drawing some noise levels more often pays is Nichol & Dhariwal 2021
    (arXiv:2102.09672), section 3.3; which of them make composition and which make detail, Choi et al. 2022
    (arXiv:2204.00227), section 3.

    Raises:
        TaskError: a range without a timestep that the model has or that is trained.
    """
    total = num_train_timesteps
    begin, end = args.min_timestep, total if args.max_timestep is None else args.max_timestep
    if not begin < end <= total:
        raise TaskError(
            f"train_args: timesteps from min_timestep {begin} to below max_timestep {end} are none of the model's; "
            f"it has {total}"
        )
    bias = args.timestep_bias
    if bias.strategy == "none":
        return Timesteps(begin, end)
    num_biased = int(bias.portion * total)
    first, stop = {
        "earlier": (0, num_biased),
        "later": (total - num_biased, total),
        "range": (bias.begin, bias.end),
    }[bias.strategy]
    weights = tuple(bias.multiplier if first <= step < stop else 1.0 for step in range(begin, end))
    if not (first < end and begin < stop and first < stop):
        raise TaskError(
            f"train_args.timestep_bias: none of the timesteps from {first} to below {stop} is among those trained"
        )
    return Timesteps(begin, end, weights)


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
