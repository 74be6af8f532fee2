"""Say how alike two results are, which may come from different devices: `entrypoint.py compare A B`.

Prints the distance between the two LoRAs' or LoKrs' effects on the weights, or between two whole models' weights, and
between the validation images' perceptual hashes, of clips frame by frame.
Exit codes: 0 compared, 2 a wrong flag, 5 a result that cannot be read, 70 a bug.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.commands.diffs.picture_diff import compare_pictures, read_or_refuse
from engine.commands.program import program
from engine.core.errors import CheckpointError
from engine.core.messages import plural
from engine.training.methods.full import distance as whole_model
from engine.training.methods.lokr import distance as kronecker
from engine.training.methods.lora.start_file import LORA_FILE

Matrix = npt.NDArray[np.float64]
Factors = tuple[Matrix, Matrix]
"""A (r, in) and B (out, r): the module's weight changes by B·A."""

_MAX_LORA_BYTES: Final = 4 << 30
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@program
def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Compare two results, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="entrypoint.py compare", description="Say how alike two results are.", allow_abbrev=False
    )
    parser.add_argument("results", type=Path, nargs=2, metavar="RESULT", help="an output folder, or its checkpoint/")
    print("\n".join(compare(*parser.parse_args(argv).results)))
    return 0


def compare(one: Path, other: Path) -> list[str]:
    """Describe how far apart two results are, in lines for a person.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    models = [whole_model.files(_checkpoint(folder)) for folder in (one, other)]
    if all(models):
        distances, norms = whole_model.distances(*models)
        what = f"{plural(len(distances), 'tensor')} (0: equal)"
    elif any(models):
        raise CheckpointError("one result is a whole model, the other is not: their weights cannot be compared")
    elif any(factors := [kronecker.read(_checkpoint(folder)) for folder in (one, other)]):
        if not all(factors):
            raise CheckpointError("one result is a LoKr, the other is not: their weights cannot be compared")
        distances, norms = kronecker.distances(*factors)
        what = f"{plural(len(distances), 'module')} (0: equal; about 1.4: unrelated)"
    else:
        pairs = [read_lora(folder) for folder in (one, other)]
        distances, norms = module_distances(*pairs), module_norms(*pairs)
        what = f"{plural(len(distances), 'module')} (0: equal; about 1.4: unrelated)"
    lines = _describe(distances, norms, what)
    return lines + compare_pictures(one / "validation", other / "validation")


def _checkpoint(folder: Path) -> Path:
    """Return the checkpoint of an output folder; a checkpoint's own folder unchanged."""
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


def _describe(distances: Mapping[str, float], norms: Mapping[str, float], what: str) -> list[str]:
    total = _ratio(_length(distances.values()), _length(norms.values()))
    relative = {name: _ratio(distances[name], norms[name]) for name in distances}
    worst = max(relative, key=lambda name: relative[name])
    return [
        f"weights  relative distance {total:.3e} over {what}",
        f"         largest {relative[worst]:.3e}, in {worst!r}",
    ]


def read_lora(folder: Path) -> dict[str, Factors]:
    """Read a result's LoRA: float64 factors by module name, which begins with the component's name.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse_tensors

    path = _checkpoint(folder) / LORA_FILE
    data = read_or_refuse(path, _MAX_LORA_BYTES)
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


def module_distances(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> dict[str, float]:
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


def module_norms(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> dict[str, float]:
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


def _length(values: Any) -> float:
    return math.sqrt(sum(value * value for value in values))


def _ratio(distance: float, size: float) -> float:
    return distance / size if size else 0.0
