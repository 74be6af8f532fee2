"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): mean squares as the product of a row's and a column's.

Of the paper's algorithm 4 it has the factored mean squares, the decay 1 - t^-0.8 and the clipping of updates. As other
trainers with a fixed rate have it, the rate is the task's: without relative steps, without a factor for the size of the
parameters, without momentum. torch's own always has this factor, and the one in transformers has no exact state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from engine.results.state import OptimizerState
from engine.task.task import TrainArgs
from engine.training.optimizers.layout import as_matrix, factored
from engine.training.optimizers.optimizer import Groups, Total
from engine.training.optimizers.slots import Slots, require_not_negative
from engine.training.optimizers.updates import batches, joined, require_float32

_DECAY_RATE: Final = -0.8
_LEAST_SQUARE: Final = 1e-30
"""Added to the squares of gradients."""
_THRESHOLD: Final = 1.0
"""The root mean square above which a parameter's update is scaled down, before the learning rate."""


class Adafactor:
    """Adafactor over the parameters of one training; see `Optimizer`."""

    def __init__(self, groups: Groups, weight_decay: float) -> None:
        self._groups = groups
        self._weight_decay = weight_decay
        self._parameters = joined(groups)
        self._slots = Slots(factored, self._parameters)
        self._updates = 0

    def begin(self) -> None:
        """See `Optimizer.begin`."""
        self._slots.begin()

    @torch.no_grad()
    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        require_float32(rates)
        self.begin()
        self._updates += 1
        weight = self._updates**_DECAY_RATE
        for (name,), rate in batches(self._groups, gradients, rates, is_whole_model=True):
            step = self._step(name, gradients[name], weight)
            root_mean_square = torch.linalg.vector_norm(step) / step.numel() ** 0.5
            step.div_((root_mean_square / _THRESHOLD).clamp_(min=1.0))
            parameter = self._parameters[name]
            parameter.mul_(1.0 - rate * self._weight_decay).sub_(step.view(parameter.shape), alpha=rate)

    def _step(self, name: str, gradient: torch.Tensor, weight: float) -> torch.Tensor:
        """Add a gradient to the mean squares, and return it divided by their root; a matrix if they are factored.

        Args:
            name: the parameter.
            gradient: its gradient.
            weight: the weight of this gradient in the mean.
        """
        if gradient.ndim < 2:
            squares = self._slots["exp_avg_sq"][name]
            squares.lerp_(gradient.square().add_(_LEAST_SQUARE), weight)
            return squares.rsqrt().mul_(gradient)
        rows, columns = self._slots["exp_avg_sq_row"][name], self._slots["exp_avg_sq_column"][name]
        matrix = gradient.reshape(as_matrix(tuple(gradient.shape)))
        square = matrix.square().add_(_LEAST_SQUARE)
        rows.lerp_(square.mean(dim=1), weight)
        columns.lerp_(square.mean(dim=0), weight)
        # The mean square of a value is its row's times its column's, divided by the mean of all.
        torch.mul(matrix, (rows / rows.mean()).rsqrt_().unsqueeze(1), out=square)
        return square.mul_(columns.rsqrt().unsqueeze(0))

    def state(self) -> OptimizerState:
        """See `Optimizer.state`."""
        self.begin()
        return OptimizerState(self._slots.all(), self._updates)

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        self._slots.take(state)
        for tensors in state.slots.values():
            require_not_negative(tensors)
        self._updates = state.updates


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> Adafactor:
    """Make Adafactor over parameters in groups, with the weight decay of `train_args.adam_args`."""
    return Adafactor(groups, args.adam_args.weight_decay)
