"""Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2): the sign of a momentum, with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.results.state import OptimizerState
from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers.layout import like_parameter
from engine.training.optimizers.optimizer import Groups, Total
from engine.training.optimizers.slots import Slots
from engine.training.optimizers.updates import batches, joined, require_float32


class Lion:
    """Lion over the parameters of one training; see `Optimizer`."""

    def __init__(self, groups: Groups, args: AdamArgs, *, is_whole_model: bool) -> None:
        self._groups = groups
        self._args = args
        self._is_whole_model = is_whole_model
        self._parameters = joined(groups)
        self._slots = Slots(like_parameter("exp_avg"), self._parameters)
        self._updates = 0

    def begin(self) -> None:
        """See `Optimizer.begin`."""
        self._slots.begin()

    @torch.no_grad()
    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        require_float32(rates)
        self.begin()
        args = self._args
        for names, rate in batches(self._groups, gradients, rates, is_whole_model=self._is_whole_model):
            parameters: list[torch.Tensor] = [self._parameters[name] for name in names]
            momenta = [self._slots["exp_avg"][name] for name in names]
            own = [gradients[name] for name in names]
            steps = torch._foreach_lerp(momenta, own, 1.0 - args.beta1)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(parameters, 1.0 - rate * args.weight_decay)
            torch._foreach_add_(parameters, steps, alpha=-rate)
            torch._foreach_lerp_(momenta, own, 1.0 - args.beta2)
        self._updates += 1

    def state(self) -> OptimizerState:
        """See `Optimizer.state`."""
        self.begin()
        return OptimizerState(self._slots.all(), self._updates)

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        self._slots.take(state)
        self._updates = state.updates


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> Lion:
    """Make Lion over parameters in groups, with the betas and the weight decay of `train_args.adam_args`."""
    return Lion(groups, args.adam_args, is_whole_model=is_whole_model)
