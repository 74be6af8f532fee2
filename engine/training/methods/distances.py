"""The distances between the weights of two results. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """The distances between the published weights of two checkpoints, by the Frobenius norm."""

    apart: Mapping[str, float]
    """The distance between the two results' weights, or changes of the base model's weights, by name."""
    norms: Mapping[str, float]
    """The larger one of the two results' own norms, by the same names."""
    unit: str
    """The word for one of what is named: a module or a tensor."""
    scale: str
    """Says in words how to read a relative distance."""
