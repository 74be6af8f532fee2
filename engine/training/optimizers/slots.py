"""Check optimizer slots."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState


def require_fit(state: OptimizerState, expected: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Check that a saved state has exactly the expected slots, names and shapes.

    Raises:
        CheckpointError: it has not; names the first slot and parameter that differ.
    """
    if state.slots.keys() != expected.keys():
        differing = sorted(state.slots.keys() ^ expected.keys())
        raise CheckpointError(
            f"the checkpoint's optimizer state is of another optimizer ({differing[0]}); use another checkpoint"
        )
    for slot, parameters in expected.items():
        saved = state.slots[slot]
        for name in sorted(saved.keys() | parameters.keys()):
            if name not in saved or name not in parameters or saved[name].shape != parameters[name].shape:
                raise CheckpointError(f"the checkpoint's {slot} does not fit the trained parameter {name}")
