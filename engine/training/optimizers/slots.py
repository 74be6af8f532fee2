"""Allocate, check and restore optimizer slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState, Tensors
from engine.training.optimizers.layout import Layout

Expected: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""Tensors by slot and parameter, of which only shapes and dtypes count."""


def expected_of(layout: Layout, parameters: Mapping[str, torch.Tensor]) -> Expected:
    """Return the slots of a layout, as tensors without memory, by slot and parameter."""
    found: dict[str, Tensors] = {}
    for name, parameter in parameters.items():
        for slot, kind in layout(tuple(parameter.shape)).items():
            empty = torch.empty(kind.shape, dtype=getattr(torch, kind.dtype), device="meta")
            found.setdefault(slot, {})[name] = empty
    return found


def require_fit(state: OptimizerState, expected: Expected, numbers: Iterable[str] = ()) -> None:
    """Check that a saved state has exactly the expected slots, names, shapes, dtypes and numbers.

    Args:
        state: the saved state.
        expected: the optimizer's slots. A slot that no parameter has may be absent.
        numbers: the names in `OptimizerState.numbers`.

    Raises:
        CheckpointError: it has not; names the first slot and parameter that differ.
    """
    slots = {slot for slot, tensors in state.slots.items() if tensors}
    differing = sorted((slots ^ {slot for slot, named in expected.items() if named}) | (state.numbers.keys() ^ numbers))
    if differing:
        raise CheckpointError(
            f"the checkpoint's optimizer state is of another optimizer ({differing[0]}); use another checkpoint"
        )
    for slot, parameters in expected.items():
        saved = state.slots.get(slot, {})
        for name in sorted(saved.keys() | parameters.keys()):
            if name not in saved or name not in parameters or not _is_alike(saved[name], parameters[name]):
                raise CheckpointError(f"the checkpoint's {slot} does not fit the trained parameter {name}")


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def require_not_negative(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check the mean squares of a saved state, or factors and scales of them, by parameter.

    Raises:
        CheckpointError: one is negative, so that its square root would be NaN.
    """
    for name, tensor in tensors.items():
        if bool((tensor < 0).any()):
            raise CheckpointError(f"the training state's mean square of {name} is negative; use another checkpoint")


class Slots:
    """The slots of parameters on their devices, zeros in the beginning."""

    def __init__(self, layout: Layout, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.expected = expected_of(layout, parameters)
        self._parameters = parameters
        self._tensors: dict[str, Tensors] | None = None

    def begin(self) -> bool:
        """Allocate the slots, unless they are there. Return whether they were not."""
        if self._tensors is not None:
            return False
        self._tensors = {
            slot: {
                name: torch.zeros(kind.shape, dtype=kind.dtype, device=self._parameters[name].device)
                for name, kind in kinds.items()
            }
            for slot, kinds in self.expected.items()
        }
        return True

    def __getitem__(self, slot: str) -> Tensors:
        """Return a slot's tensors by parameter; none if no parameter has it. They are no copies."""
        assert self._tensors is not None, "begin comes first"
        return self._tensors.get(slot, {})

    def all(self) -> dict[str, Tensors]:
        """Return all tensors by slot and parameter. They are no copies."""
        assert self._tensors is not None, "begin comes first"
        return self._tensors

    def take(self, state: OptimizerState, numbers: Iterable[str] = ()) -> None:
        """Continue with the tensors of a saved state; those on the right device already are not copied.

        Raises:
            CheckpointError: they do not fit; see `require_fit`.
        """
        require_fit(state, self.expected, numbers)
        self._tensors = {
            slot: {name: tensor.to(self._parameters[name].device) for name, tensor in state.slots[slot].items()}
            for slot in self.expected
        }
