"""The probabilities with which flow matching draws its timesteps (Esser et al. 2024, arXiv:2403.03206, section 3.1).

They decide what is drawn, so they must have the same bits on every machine. Mathematical libraries round `exp`, `log`
and `cos` differently; `decimal` and the basic operations of float64 give the same everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

_PRECISE: Final = Context(prec=30)
_PI: Final = Decimal("3.14159265358979323846264338327950288")
_FARTHEST: Final = 10
"""Standard deviations beyond which the rest of a normal distribution is nothing (8e-24)."""
_BISECTIONS: Final = 54
_SINE_TERMS: Final = 12
"""The first that is left out of the series of the sine is below 1e-19 for arguments up to π/2."""


@functools.cache
def logit_normal(total: int, mean: float, std: float) -> tuple[float, ...]:
    """Return the probability of each of `total` timesteps, from the one with the least noise to that with the most.

    As in Diffusers' scripts (`compute_density_for_timestep_sampling`), a number u whose logit is normally distributed
    chooses the timestep ⌊u · total⌋ of a list that begins with the most noise: with `mean` above 0 there is less noise.
    """
    with localcontext(_PRECISE):
        own_mean, own_std = Decimal(mean), Decimal(std)
        logits = [(Decimal(k) / (total - k)).ln() for k in range(1, total)]
        inner = [_normal_cdf((logit - own_mean) / own_std) for logit in logits]
        return _between([Decimal(0), *inner, Decimal(1)])[::-1]


@functools.cache
def mode(total: int, scale: float) -> tuple[float, ...]:
    """Return the probability of each of `total` timesteps; their order does not matter, as they are symmetric.

    A uniform u is mapped to 1 - u - scale · (cos²(πu/2) - 1 + u), which falls from 1 to 0 for scales from -1 to 1.75
    (section 3.1, "mode sampling with heavy tails"); the timestep is chosen as in `logit_normal`.
    """
    wanted = np.arange(total + 1, dtype=np.float64) / total
    low, high = np.zeros_like(wanted), np.ones_like(wanted)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # 1 minus the map; 2 cos²(x/2) = 1 + cos x
        is_below = middle + scale * ((_cos_pi(middle) - 1) / 2 + middle) < wanted
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    low[0], low[-1] = 0.0, 1.0
    found: list[float] = np.diff(low).tolist()
    return tuple(found)


def _between(bounds: Sequence[Decimal]) -> tuple[float, ...]:
    return tuple(float(after - before) for before, after in pairwise(bounds))


def _normal_cdf(z: Decimal) -> Decimal:
    """Return Φ(z) = 1/2 + φ(z) · (z + z³/3 + z⁵/(3·5) + …) (Abramowitz & Stegun 1964, 26.2.11)."""
    if abs(z) > _FARTHEST:
        return Decimal(int(z > 0))
    square, term, series, divisor = z * z, z, z, 1
    while abs(term) > abs(series) * Decimal("1e-28"):
        divisor += 2
        term = term * square / divisor
        series += term
    return Decimal("0.5") + series * (-square / 2).exp() / (2 * _PI).sqrt()


def _cos_pi(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return cos(πu) for u from 0 to 1, as -sin(π(u - 1/2)) by its Taylor series."""
    angle = np.pi * (u - 0.5)
    square, series = angle * angle, np.ones_like(angle)
    for k in range(_SINE_TERMS, 0, -1):
        series = 1 - square / (2 * k * (2 * k + 1)) * series
    return -angle * series
