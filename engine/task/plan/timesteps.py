"""Draw the timesteps that a task trains, uniformly or by weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.core import rng
from engine.core.errors import TaskError
from engine.task.plan import timestep_density
from engine.task.task import TimestepBias, TrainArgs


@dataclass(frozen=True, slots=True)
class Timesteps:
    """The timesteps [begin, end) that are drawn, uniformly or by `weights`."""

    begin: int
    end: int
    weights: tuple[float, ...] = ()
    """One weight of at least 0 for each timestep of [begin, end), not all 0; () draws uniformly."""

    def draw(self, words: rng.Words) -> npt.NDArray[np.int64]:
        """Return a timestep for each raw 64-bit word: int64, of the shape of `words`."""
        drawn: npt.NDArray[np.int64]
        if not self.weights:
            drawn = rng.below(words, self.end - self.begin) + self.begin
            return drawn
        # Inverse transform sampling. cumsum adds in order, so that the bounds are the same on every machine.
        bounds = np.cumsum(np.array(self.weights, dtype=np.float64))
        found = np.searchsorted(bounds, rng.fractions(words) * bounds[-1], side="right")
        # A product that is rounded up to the last bound belongs to the last timestep.
        drawn = np.minimum(found, len(bounds) - 1).astype(np.int64) + self.begin
        return drawn

    @classmethod
    def of(cls, args: TrainArgs, num_train_timesteps: int) -> Timesteps:
        """Return the timesteps that a task trains, for a model with `num_train_timesteps`.

        `timestep_bias` follows Diffusers' text-to-image examples (`generate_timestep_weights`): the earliest or latest
        `portion` of all timesteps, or those of [`begin`, `end`), are drawn `multiplier` times as often as the others,
        without a correction of the loss. Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.3, found that drawing
        some noise levels more often helps; Choi et al. 2022 (arXiv:2204.00227), section 3, describe which of them
        determine the composition and which the details.

        `timestep_sampling` gives the timesteps other weights (`timestep_density`), which the bias multiplies.

        Raises:
            TaskError: the range is empty or exceeds the model's timesteps, the bias applies to none of them, or all
                have the weight 0.
        """
        total = num_train_timesteps
        begin, end = args.min_timestep, total if args.max_timestep is None else args.max_timestep
        if not begin < end <= total:
            raise TaskError(
                f"train_args: min_timestep is {begin} and max_timestep is {end}: expected min_timestep < max_timestep "
                f"<= {total}, the model's number of timesteps"
            )
        weights = _bias_weights(args.timestep_bias, begin, end, total)
        if sampled := _sampling_weights(args, total)[begin:end]:
            weights = tuple(a * b for a, b in zip(sampled, weights, strict=True)) if weights else sampled
            if not sum(weights) > 0:
                raise TaskError(
                    f"train_args.timestep_sampling {args.timestep_sampling}: none of the timesteps from {begin} to "
                    f"below {end} is ever drawn; change logit_mean and logit_std, or min_timestep and max_timestep"
                )
        return cls(begin, end, weights)


def _bias_weights(bias: TimestepBias, begin: int, end: int, total: int) -> tuple[float, ...]:
    """Return the weights of the timesteps [begin, end) by `timestep_bias`; () if there is none."""
    if bias.strategy == "none":
        return ()
    num_biased = int(bias.portion * total)
    first, stop = {
        "earlier": (0, num_biased),
        "later": (total - num_biased, total),
        "range": (bias.begin, bias.end),
    }[bias.strategy]
    if not (first < end and begin < stop and first < stop):
        raise TaskError(f"train_args.timestep_bias: none of the timesteps from {first} to below {stop} is trained")
    return tuple(bias.multiplier if first <= step < stop else 1.0 for step in range(begin, end))


def _sampling_weights(args: TrainArgs, total: int) -> tuple[float, ...]:
    """Return the weights of all timesteps by `timestep_sampling`; () if all are drawn alike."""
    if args.timestep_sampling == "logit_normal":
        return timestep_density.logit_normal(total, args.logit_mean, args.logit_std)
    if args.timestep_sampling == "mode":
        return timestep_density.mode(total, args.mode_scale)
    return ()
