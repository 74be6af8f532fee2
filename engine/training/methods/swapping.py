"""Give parameters other values for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

import torch


@contextmanager
def swapped(parameters: Mapping[str, torch.nn.Parameter], values: MutableMapping[str, torch.Tensor]) -> Iterator[None]:
    """Swap the memory of parameters and of tensors of the same shape, dtype and device."""
    _swap(parameters, values)
    try:
        yield
    finally:
        _swap(parameters, values)


def _swap(parameters: Mapping[str, torch.nn.Parameter], values: MutableMapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data, values[name] = values[name], parameter.data
