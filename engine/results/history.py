"""The history of a training: one row per optimizer step of the whole chain, carried from checkpoint to checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from engine.core.errors import CheckpointError
from engine.core.json_reader import dump_lines, parse_lines

DIGEST_STEPS: Final = 50
"""Interval of digests of the weights: one is recorded at each multiple, counted through the whole chain. So the same
steps have one wherever a chain is cut, and whenever it is killed. The last weights are in the checkpoint themselves."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The numbers of one trained step."""

    step: int
    """The global step that was reached."""
    loss: float
    """The mean over the step's samples."""
    learning_rate: float
    grad_norm: float | None
    """The gradient's L2 norm before clipping; None if the fp16 loss scaler skipped the step."""
    weights: str | None = None
    """`state.weights_digest` of the trained parameters after the step, at every `DIGEST_STEPS`-th step."""


def dump(history: Iterable[StepReport]) -> bytes:
    """Return a JSON line for each step."""
    return dump_lines(map(_columns, history))


def _columns(row: StepReport) -> list[Any]:
    columns = [row.step, row.loss, row.learning_rate, row.grad_norm]
    return columns if row.weights is None else [*columns, row.weights]


def parse(data: bytes) -> list[StepReport]:
    """Return the steps that `dump` wrote.

    Raises:
        CheckpointError: the bytes are malformed.
    """
    try:
        return [_row(*value) for value in parse_lines(data)]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint's history is malformed ({error}); use another checkpoint") from None


def _row(
    step: int, loss: float, learning_rate: float, grad_norm: float | None, weights: str | None = None
) -> StepReport:
    numbers = [step, loss, learning_rate, *([] if grad_norm is None else [grad_norm])]
    if type(step) is not int or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"step {step!r} is malformed")
    if not (weights is None or (isinstance(weights, str) and re.fullmatch("[0-9a-f]{64}", weights))):
        raise ValueError(f"the digest of step {step} is malformed")
    return StepReport(step, float(loss), float(learning_rate), None if grad_norm is None else float(grad_norm), weights)
