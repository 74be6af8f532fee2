"""An exponential moving average of the trained parameters (Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from engine.core.errors import CheckpointError
from engine.training.methods.method import Parameters, Tensors

_WARM_UP: Final = 10


def decay_of(steps: int, max_decay: float) -> float:
    """Return the decay of the average in a step.

    The rule is that of `diffusers.training_utils.EMAModel` with its defaults, min(max_decay, (1 + i) / (10 + i)). There
    i counts the updates of the average and the first one's decay is 0, so that it begins with the weights after the
    first step. Here i is the number of steps of the training, and the average begins with the training's start.

    Args:
        steps: the number of steps that were trained before this one.
        max_decay: the task's `train_args.ema_decay`.
    """
    return min(max_decay, (1 + steps) / (_WARM_UP + steps))


class Ema:
    """The average of some parameters, in float32 on their device."""

    def __init__(self, parameters: Parameters, max_decay: float) -> None:
        """
        Args:
            parameters: the parameters that this process averages, by name.
            max_decay: the task's `train_args.ema_decay`.
        """
        self._parameters = parameters
        self._max_decay = max_decay
        self._shadow: Tensors | None = None

    def begin(self) -> None:
        """Let the average be a copy of the parameters, unless it was restored or has begun. Call it before an update.

        Beginning where it is made would take the memory of two averages while one is restored.
        """
        if self._shadow is None:
            self._shadow = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @property
    def shadow(self) -> Tensors:
        """The average by parameter. The tensors are no copies: they change with the next update."""
        self.begin()
        assert self._shadow is not None
        return self._shadow

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Add the parameters after a step to the average, in place.

        Args:
            steps: the number of steps that were trained before this one.
        """
        if self._parameters:
            shadow = [self.shadow[name] for name in self._parameters]
            weight = 1.0 - decay_of(steps, self._max_decay)
            torch._foreach_lerp_(shadow, list(self._parameters.values()), weight)

    def restore(self, shadow: Mapping[str, torch.Tensor]) -> None:
        """Continue with a saved average. Tensors that are on the right device already are taken over, not copied.

        Raises:
            CheckpointError: names or shapes differ.
        """
        for name in sorted(shadow.keys() | self._parameters.keys()):
            if name not in shadow or name not in self._parameters or shadow[name].shape != self._parameters[name].shape:
                raise CheckpointError(f"the checkpoint's moving average does not fit the trained parameter {name}")
        self._shadow = {name: shadow[name].to(parameter.device) for name, parameter in self._parameters.items()}
