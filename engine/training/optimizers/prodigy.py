"""Prodigy (Mishchenko & Defazio 2024, arXiv:2306.06101, algorithm 4): AdamW that finds its learning rate.

The rate of an update is the task's, times an estimate d of the distance from the start to the solution. The estimate
is a quotient of two sums over all parameters. It begins with 1e-6 and never falls. As in the authors' own code
(prodigyopt) both sums are without the factor 1 - sqrt(beta2), which cancels out, and divided by the first estimate,
which keeps them away from the smallest numbers. What they recommend for diffusion models is on: Adam's bias correction
(`use_bias_correction`), and a norm that does not depend on the rate (`safeguard_warmup`), since a rate that rises would
otherwise lead to an estimate that is too large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState
from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers.layout import like_parameter
from engine.training.optimizers.optimizer import Groups, Total
from engine.training.optimizers.slots import Slots, require_not_negative
from engine.training.optimizers.updates import batches, joined, require_float32

_FIRST: Final = 1e-6
"""The first estimate."""
_NUMBERS: Final = ("d", "r")


class Prodigy:
    """Prodigy over the parameters of one training; see `Optimizer`."""

    def __init__(self, groups: Groups, args: AdamArgs, *, is_whole_model: bool, total: Total) -> None:
        self._groups = groups
        self._args = args
        self._is_whole_model = is_whole_model
        self._total = total
        self._parameters = joined(groups)
        self._slots = Slots(like_parameter("exp_avg", "exp_avg_sq", "s", "start"), self._parameters)
        self._updates = 0
        self._d = _FIRST
        self._r = 0.0
        """The numerator of the estimate."""

    @torch.no_grad()
    def begin(self) -> None:
        """See `Optimizer.begin`. The slot `start` has the parameters as they are before the first update."""
        if self._slots.begin():
            for name, parameter in self._parameters.items():
                self._slots["start"][name].copy_(parameter)

    @torch.no_grad()
    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        require_float32(rates, max(1.0, self._d**2 / _FIRST))
        self.begin()
        self._updates += 1
        args, number = self._args, self._updates
        step = self._d * math.sqrt(1.0 - args.beta2**number) / (1.0 - args.beta1**number)
        sums = self._sums(gradients, rates[0] * step)
        for names, rate in batches(self._groups, gradients, rates, is_whole_model=self._is_whole_model):
            self._move(names, [gradients[name] for name in names], rate * step)
        added, norm = self._total(sums, 2).tolist()
        r = self._r * math.sqrt(self._args.beta2) + added
        if norm > 0.0 and math.isfinite(r / norm):  # beyond float32 only where the parameters are, too
            self._r, self._d = r, max(self._d, r / norm)

    def _sums(self, gradients: Mapping[str, torch.Tensor], rate: float) -> dict[str, torch.Tensor]:
        """Add the gradients to s. Return what each parameter adds to r and to the L1 norm of s: float64, shape (2,).

        A gradient that is missing counts as zeros. The rate is the first group's: those of the others are constant
        multiples of it, and the estimate holds for steps with one weight in all coordinates.
        """
        scale = self._d / _FIRST
        found = {}
        for name, parameter in self._parameters.items():
            s, gradient = self._slots["s"][name], gradients.get(name)
            s.mul_(math.sqrt(self._args.beta2))
            added = torch.zeros((), device=s.device)
            if gradient is not None:
                s.add_(gradient, alpha=scale * self._d)
                added = torch.sub(self._slots["start"][name], parameter).mul_(gradient).sum()
            found[name] = torch.stack([added.double() * (scale * rate), s.abs().sum().double()])
        return found

    def _move(self, names: Sequence[str], gradients: list[torch.Tensor], rate: float) -> None:
        """Update parameters with AdamW, whose gradients are multiplied by the estimate."""
        args, d = self._args, self._d
        parameters: list[torch.Tensor] = [self._parameters[name] for name in names]
        means = [self._slots["exp_avg"][name] for name in names]
        squares = [self._slots["exp_avg_sq"][name] for name in names]
        torch._foreach_mul_(means, args.beta1)
        torch._foreach_add_(means, gradients, alpha=d * (1.0 - args.beta1))
        torch._foreach_mul_(squares, args.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, d**2 * (1.0 - args.beta2))
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, d * args.epsilon)
        torch._foreach_mul_(parameters, 1.0 - rate * args.weight_decay)
        torch._foreach_addcdiv_(parameters, means, roots, -rate)

    def state(self) -> OptimizerState:
        """See `Optimizer.state`."""
        self.begin()
        return OptimizerState(self._slots.all(), self._updates, {"d": self._d, "r": self._r})

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        self._slots.take(state, _NUMBERS)
        require_not_negative(self._slots["exp_avg_sq"])
        self._d, self._r = (state.numbers[name] for name in _NUMBERS)
        if self._d < _FIRST:
            raise CheckpointError(
                f"the training state's estimate d of {self._d:g} is too small; use another checkpoint"
            )
        self._updates = state.updates


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> Prodigy:
    """Make Prodigy over parameters in groups, with `train_args.adam_args`."""
    return Prodigy(groups, args.adam_args, is_whole_model=is_whole_model, total=total)
