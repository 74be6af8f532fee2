"""Dropout (Srivastava et al. 2014, JMLR 15) whose masks are addressed: nothing is drawn from a global generator.

PEFT's own dropout draws from torch's generator, so that a mask would depend on everything that was drawn before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from engine.core import rng

_LEVELS: Final = 1 << 16


class Dropping:
    """Which micro-batch is under way, for all dropout layers of one adapter."""

    def __init__(self) -> None:
        self.address: int | None = None
        """The number of the micro-batch's first visit; None drops nothing."""

    @contextmanager
    def at(self, address: int) -> Iterator[None]:
        """Drop inputs while the block computes a micro-batch: its forward pass, and what is computed again for its
        gradients."""
        self.address = address
        try:
            yield
        finally:
            self.address = None


class AddressedDropout(torch.nn.Module):
    """Inverted dropout: each value is kept with probability 1 - p and divided by it, else zero.

    The mask depends on nothing but the seed, the layer and the micro-batch, and is the same however often it is asked
    for. p is taken to the nearest of 65536 steps, 0 excluded, and the division is by what is kept in fact.
    """

    def __init__(self, probability: float, *, seed: int, layer: str, dropping: Dropping) -> None:
        """
        Args:
            probability: of being dropped, in (0, 1).
            seed: the task's.
            layer: a name that is this layer's own.
            dropping: shared by all layers.
        """
        super().__init__()
        self.dropped: Final = min(max(1, round(probability * _LEVELS)), _LEVELS - 1)
        self._seed, self._stream, self._dropping = seed, f"lora dropout/{layer}", dropping

    @property
    def is_dropping(self) -> bool:
        """Whether a micro-batch is under way."""
        return self._dropping.address is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape and floating dtype; the first axis is the micro-batch. Outside of `Dropping.at`, `x` itself."""
        if self._dropping.address is None:
            return x
        lanes = rng.lanes(self._seed, self._stream, self._dropping.address, tuple(x.shape))
        kept = torch.from_numpy(lanes >= self.dropped).to(x.device)
        # A mask of bytes is all that the backward pass has to keep.
        return torch.where(kept, x, 0.0) * (_LEVELS / (_LEVELS - self.dropped))
