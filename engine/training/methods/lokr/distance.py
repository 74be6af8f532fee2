"""Measure how far apart the changes of the weights by two LoKrs are, without forming the Kronecker products."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.errors import CheckpointError
from engine.training.methods.distances import Distances
from engine.training.methods.lora.distance import SCALE, published_names
from engine.training.methods.lora.formats.start_file import LORA_FILE

if TYPE_CHECKING:
    import torch

    Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
    """W₁ and W₂ as matrices, float64, by the layer's name."""


def is_in(folder: Path) -> bool:
    """Return whether a folder has a published LoKr; see `MethodSpec.is_in`."""
    from engine.training.methods.lokr.split import modules_of

    return bool(modules_of(published_names(folder)))


def _read(folder: Path) -> Factors:
    """Return the factors of a published LoKr. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    from engine.training.methods.lokr.layer import right_matrix
    from engine.training.methods.lokr.split import ENDS, LEFT, modules_of

    found: Factors = {}
    try:
        with safe_open(folder / LORA_FILE, framework="pt") as file:
            names = {*file.keys()}
            for module in modules_of(names):
                own = {end: file.get_tensor(f"{module}{end}").double() for end in ENDS if f"{module}{end}" in names}
                found[module] = own[LEFT], right_matrix(own)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / LORA_FILE} is not a file of a LoKr ({error})") from None
    return found


def distances(one: Path, other: Path) -> Distances:
    """Return how far apart the LoKrs in two folders are; see `MethodSpec.distances`."""
    first, second = (_read(folder) for folder in (one, other))
    if first.keys() != second.keys():
        raise CheckpointError(f"{min(first.keys() ^ second.keys())!r} is adapted in one result only")
    apart, norms = {}, {}
    for name, pair in first.items():
        if [own.shape for own in pair] != [own.shape for own in second[name]]:
            raise CheckpointError(f"{name!r} has other factors in the other result: they cannot be compared")
        apart[name] = _distance(pair, second[name])
        norms[name] = max(float(left.norm() * right.norm()) for left, right in (pair, second[name]))
    return Distances(apart=apart, norms=norms, unit="module", scale=SCALE)


def _distance(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return ‖A ⊗ B - C ⊗ D‖.

    The difference is (A - C) ⊗ B + C ⊗ (B - D), and <P ⊗ Q, R ⊗ S> = <P, R>·<Q, S>. The norms of the two products
    themselves would lose half of the digits where they are nearly equal.
    """
    (a, b), (c, d) = one, other
    lefts, rights = (a - c, c), (b, b - d)
    squares = [(left.square().sum() * right.square().sum()) for left, right in zip(lefts, rights, strict=True)]
    both = (lefts[0] * lefts[1]).sum() * (rights[0] * rights[1]).sum()
    return math.sqrt(max(0.0, float(squares[0] + squares[1] + 2 * both)))
