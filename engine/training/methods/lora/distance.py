"""Measure how far apart the changes of the weights by two LoRAs are, without forming the products of the matrices."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.core.errors import CheckpointError
from engine.core.files import atomic_files
from engine.training.methods.distances import Distances
from engine.training.methods.lora.formats.start_file import LORA_FILE

Matrix = npt.NDArray[np.float64]
Factors = tuple[Matrix, Matrix]
"""A (r, in) and B (out, r): the module's weight changes by B·A."""

SCALE: Final = "0: equal; about 1.4: unrelated"
_MAX_BYTES: Final = 4 << 30
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def published_names(folder: Path) -> Set[str]:
    """Return the names of the tensors in an adapter's published file; none if the folder does not have it.

    Raises:
        CheckpointError: the file is malformed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / LORA_FILE, framework="np") as file:
            return {*file.keys()}
    except FileNotFoundError:
        return set()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / LORA_FILE} is not a safetensors file ({error})") from None


def is_in(folder: Path) -> bool:
    """Return whether a folder has a published LoRA; see `MethodSpec.is_in`."""
    return any(name.endswith((_DOWN, _UP)) for name in published_names(folder))


def distances(one: Path, other: Path) -> Distances:
    """Return how far apart the LoRAs in two folders are; see `MethodSpec.distances`."""
    pairs = [read(folder) for folder in (one, other)]
    return Distances(apart=_apart(*pairs), norms=_norms(*pairs), unit="module", scale=SCALE)


def read(folder: Path) -> dict[str, Factors]:
    """Read a published LoRA: float64 factors by module name, which begins with the component's name.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse_tensors

    path = folder / LORA_FILE
    try:
        data = atomic_files.read_plain(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if data is None:
        raise CheckpointError(f"{path} is not a plain file of at most {_MAX_BYTES} bytes")
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file of a LoRA ({error})") from None
    modules = {name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)}
    if not modules or tensors.keys() != {f"{module}{part}" for module in modules for part in (_DOWN, _UP)}:
        raise CheckpointError(f"{path} does not hold pairs of lora_A and lora_B")
    return {module: _factors(path, module, tensors) for module in sorted(modules)}


def _factors(path: Path, module: str, tensors: Mapping[str, npt.NDArray[Any]]) -> Factors:
    down, up = tensors[f"{module}{_DOWN}"], tensors[f"{module}{_UP}"]
    is_sound = down.ndim >= 2 and up.ndim >= 2 and down.size and up.size and up.shape[1] == down.shape[0]
    if not is_sound or not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise CheckpointError(
            f"{path}: {module!r} has shapes {down.shape} and {up.shape}, or values that are not finite"
        )
    rank = down.shape[0]  # a convolution's up matrix is (out, r, 1, 1)
    return down.reshape(rank, -1).astype(np.float64), up.reshape(-1, rank).astype(np.float64)


def _apart(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> dict[str, float]:
    """Return ‖B₁·A₁ - B₂·A₂‖ (Frobenius) of each module; a module that only one adapts counts as 0 in the other.

    Raises:
        CheckpointError: they are LoRAs of different models.
    """
    found = {}
    for module in sorted(one.keys() | other.keys()):
        if module not in one or module not in other:
            found[module] = norm(*(one.get(module) or other[module]))
            continue
        (down, up), (other_down, other_up) = one[module], other[module]
        if down.shape[1] != other_down.shape[1] or len(up) != len(other_up):
            raise CheckpointError(f"{module!r} has another size in the other result: they are of different base models")
        is_equal = np.array_equal(down, other_down) and np.array_equal(up, other_up)  # then no rounding either
        difference = np.concatenate([down, other_down]), np.concatenate([up, -other_up], axis=1)
        found[module] = 0.0 if is_equal else norm(*difference)
    return found


def _norms(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> dict[str, float]:
    """Return the larger of ‖B₁·A₁‖ and ‖B₂·A₂‖ of each module."""
    return {
        module: max(norm(*pairs[module]) for pairs in (one, other) if module in pairs)
        for module in one.keys() | other.keys()
    }


def norm(down: Matrix, up: Matrix) -> float:
    """Return ‖B·A‖ (Frobenius), without forming B·A.

    With B = Q₁R₁ and Aᵀ = Q₂R₂ it is ‖R₁R₂ᵀ‖, since orthogonal factors do not change the norm. Computing it from the
    Gram matrices BᵀB and AAᵀ would lose half of the digits if two LoRAs are nearly equal.
    """
    (_, left), (_, right) = np.linalg.qr(up), np.linalg.qr(down.T)
    return float(np.linalg.norm(left @ right.T))
