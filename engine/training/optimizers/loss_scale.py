"""The fp16 loss scale's rule of change: `torch.amp.GradScaler`'s (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

from typing import Final

from engine.results.state import MAX_FLOAT32, LossScale

_GROWTH_INTERVAL: Final = 2000


def updated(loss_scale: LossScale, *, finite: bool) -> LossScale:
    """Return the scale after a step: halved if a gradient is not finite, doubled after 2000 finite steps in a row."""
    if not finite:
        return LossScale(loss_scale.scale * 0.5, 0)
    if loss_scale.growth_tracker + 1 < _GROWTH_INTERVAL:
        return LossScale(loss_scale.scale, loss_scale.growth_tracker + 1)
    grown = loss_scale.scale * 2.0
    return LossScale(grown if grown <= MAX_FLOAT32 else loss_scale.scale, 0)


def is_collapsed(loss_scale: LossScale) -> bool:
    """Return whether the scale is below 1, where it no longer protects small gradients: the training has failed."""
    return loss_scale.scale < 1.0
