"""The optimizer: its name, its arguments and the learning-rate schedule, in `train_args`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.task.key import key

LrScheduleName = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "lion", "prodigy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LrScheduler:
    lr_scheduler: LrScheduleName = key(
        "constant", "Schedule", "The learning-rate schedule; it spans the whole training."
    )
    lr_warmup_steps: int = key(
        500,
        "Warm-up steps",
        "Optimizer steps until the full learning rate; the schedule `constant` has no warm-up.",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamArgs:
    beta1: float = key(
        0.9, "Beta 1", "Decay rate of the first moment; Adafactor has none.", minimum=0, exclusiveMaximum=1
    )
    beta2: float = key(
        0.999,
        "Beta 2",
        "Decay rate of the second moment; of Lion's only one, where 0.99 is usual. Not for Adafactor.",
        minimum=0,
        exclusiveMaximum=1,
    )
    weight_decay: float = key(1e-2, "Weight decay", "Decoupled weight decay.", minimum=0)
    epsilon: float = key(1e-8, "Epsilon", "Added to the denominator; not for Adafactor and Lion.", exclusiveMinimum=0)
