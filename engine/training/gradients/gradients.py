"""The interface of a step's gradients: how they are summed, and which process keeps which of the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from engine.training.methods.method import Parameters, Tensors


class GradientSum(Protocol):
    """The sum of one step's gradients over the micro-batches of all processes, in the order of the micro-batches."""

    losses: torch.Tensor
    """The losses of the micro-batches so far, in their order: float32, shape (K,), on the device."""

    def add(self, loss: torch.Tensor, scaled: torch.Tensor) -> None:
        """Take the gradients of this process's next micro-batch, and add those of all processes' next ones.

        All processes call it equally often.

        Args:
            loss: the loss, a float32 scalar with gradients.
            scaled: the loss multiplied by the fp16 loss scale, of which the gradients are taken.
        """
        ...

    def divided(self, divisor: float) -> dict[str, torch.Tensor]:
        """Divide the sum in place, and return the float32 gradients that this process keeps, by parameter.

        A parameter that the step's losses do not depend on may be absent.
        """
        ...


class Gradients(Protocol):
    """Sums gradients, step by step, over all processes of a job."""

    @property
    def owned(self) -> Parameters:
        """The parameters that this process updates."""
        ...

    def step(self, trained: Sequence[torch.Tensor], num_micro_batches: int) -> AbstractContextManager[GradientSum]:
        """Return the context in which the gradients of a step are summed.

        Args:
            trained: the tensors to take gradients of, in the order of the parameters.
            num_micro_batches: the number of the step's micro-batches in all processes.
        """
        ...

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the L2 norm of all processes' gradients: a float32 scalar, the same in all of them."""
        ...

    def total(self, values: Mapping[str, torch.Tensor], length: int) -> torch.Tensor:
        """Return the sum of the values that all processes have for the parameters they own.

        All processes call it, and have the same sum: it is taken in the order of the parameters.

        Args:
            values: a float64 tensor of shape (length,) for each parameter of `owned`.
            length: the number of sums.

        Returns:
            A float64 tensor of shape (length,).
        """
        ...

    def share_parameters(self) -> None:
        """Let all processes have the values of the parameters that one of them has changed."""
        ...

    def sources(self, owned: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Tensors:
        """Return tensors that belong to parameters, of which this process has the owned ones, all by name.

        What another process has is fetched by reading: all processes read all sources, in the same order, and the
        first one gets the tensors.

        Args:
            owned: the tensors of the parameters that this process owns.
            expected: tensors with the shapes and dtypes of all of them, which need no memory.
        """
        ...
