"""The learning rate schedule as a pure function of the step. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from engine.task.task import LrScheduleName

POLYNOMIAL_END: Final = 1e-7
"""The last rate of the polynomial schedule, as in `diffusers.optimization.get_scheduler`."""


def schedule_factor(base: float, schedule: LrScheduleName, step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Return the factor of the learning rates in the step that is trained at global step `step` (from 0).

    `base` times the factor equals, bit for bit, the rate of `diffusers.optimization.get_scheduler` with its defaults
    (one cycle, power 1). `constant` has no warm-up; in the others the rate rises linearly from 0 over `warmup_steps`
    and the curve spans the rest of `max_steps`. From `max_steps` on, the decaying schedules keep their last value.

    Args:
        base: the rate of the first group of parameters; the other groups' rates have the same factor.
        schedule: the schedule's name.
        step: the number of steps trained before.
        warmup_steps: number of warm-up steps of the whole training.
        max_steps: number of steps of the whole training.
    """
    if schedule != "constant" and step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    if schedule == "linear":
        # Not 1 - progress, which rounds differently.
        return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))
    if schedule == "polynomial":
        return _polynomial(base, progress, is_over=step >= max_steps)
    return _CURVES[schedule](progress)


def _cosine(progress: float) -> float:
    return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


_CURVES: Final[Mapping[LrScheduleName, Callable[[float], float]]] = {
    "constant": lambda _: 1.0,
    "constant_with_warmup": lambda _: 1.0,
    "cosine": _cosine,
    # A single cycle has no restart.
    "cosine_with_restarts": _cosine,
}


def _polynomial(base: float, progress: float, *, is_over: bool) -> float:
    # A base rate at or below the last rate cannot decay to it. Diffusers raises an error, but a valid task must train,
    # and rising to the last rate would not be a decay, so the rate is constant.
    if base <= POLYNOMIAL_END:
        return 1.0
    if is_over:
        return POLYNOMIAL_END / base
    return ((base - POLYNOMIAL_END) * (1 - progress) + POLYNOMIAL_END) / base
