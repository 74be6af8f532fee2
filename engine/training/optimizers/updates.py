"""The parameters that are updated together, and the limit for learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from engine.core.errors import NonFiniteError
from engine.results.state import MAX_FLOAT32
from engine.training.optimizers.optimizer import Groups


def require_float32(rates: Iterable[float], factor: float = 1.0) -> None:
    """Check the learning rates of an update before it changes anything.

    Args:
        rates: the rates.
        factor: what an update multiplies them by.

    Raises:
        NonFiniteError: a product is beyond float32, or no number.
    """
    for rate in rates:
        if not rate * factor <= MAX_FLOAT32:
            raise NonFiniteError(f"a learning rate of {rate:g} is beyond float32; try a lower learning_rate")


def joined(groups: Groups) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of all groups by name."""
    return {name: parameter for group in groups for name, parameter in group.items()}


def batches(
    groups: Groups, gradients: Mapping[str, torch.Tensor], rates: Sequence[float], *, is_whole_model: bool
) -> Iterator[tuple[list[str], float]]:
    """Yield the names of parameters that have a gradient and are updated together, with their learning rate.

    In a whole model they are updated one by one, so that what is computed on the way takes the memory of one. The few
    values of other trainings are updated a group at a time, which launches fewer kernels on a GPU.
    """
    for group, rate in zip(groups, rates, strict=True):
        names = [name for name in group if name in gradients]
        if is_whole_model:
            yield from (([name], rate) for name in names)
        elif names:
            yield names, rate
