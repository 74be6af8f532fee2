"""Dropout (Srivastava et al. 2014, JMLR 15) with addressed masks.

PEFT's own dropout draws from torch's global generator, so a mask would depend on everything drawn before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from engine.core import rng

_LEVELS: Final = 1 << 16


class Dropping:
    """The micro-batch for which all dropout layers of one adapter drop inputs, if any."""

    def __init__(self) -> None:
        self.address: int | None = None
        """The number of the micro-batch's first visit; None if nothing is dropped."""

    @contextmanager
    def at(self, address: int) -> Iterator[None]:
        """Drop inputs while the block computes a micro-batch, including recomputation in its backward pass."""
        self.address = address
        try:
            yield
        finally:
            self.address = None


class AddressedDropout(torch.nn.Module):
    """Inverted dropout: each value is kept with probability 1 - p and divided by 1 - p, or else set to zero.

    The mask depends only on the seed, the layer and the micro-batch, however often it is computed. p is rounded to the
    nearest of 65536 steps, but not to 0 or 1, and the division uses the rounded value.
    """

    def __init__(self, probability: float, *, seed: int, layer: str, dropping: Dropping) -> None:
        """
        Args:
            probability: the probability that a value is dropped, in (0, 1).
            seed: the task's seed.
            layer: a name unique to this layer.
            dropping: the switch, shared by all layers.
        """
        super().__init__()
        self.dropped: Final = min(max(1, round(probability * _LEVELS)), _LEVELS - 1)
        self._seed, self._stream, self._dropping = seed, f"lora dropout/{layer}", dropping

    @property
    def is_dropping(self) -> bool:
        """True during a micro-batch."""
        return self._dropping.address is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to any shape and floating dtype, the micro-batch first; outside `Dropping.at` return `x`."""
        if self._dropping.address is None:
            return x
        lanes = rng.lanes(self._seed, self._stream, self._dropping.address, tuple(x.shape))
        kept = torch.from_numpy(lanes >= self.dropped).to(x.device)
        # The backward pass keeps only the mask, in bytes.
        return torch.where(kept, x, 0.0) * (_LEVELS / (_LEVELS - self.dropped))
