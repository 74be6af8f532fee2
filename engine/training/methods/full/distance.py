"""Measure how far apart the published weights of two whole models are, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core.errors import CheckpointError
from engine.training.methods.distances import Distances
from engine.training.methods.full.files import weights_of

if TYPE_CHECKING:
    import torch


def is_in(folder: Path) -> bool:
    """Return whether a folder has the weights of a whole model; see `MethodSpec.is_in`."""
    return bool(_files(folder))


def _files(checkpoint: Path) -> list[Path]:
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.glob("*/*") if path.is_file()}
    components = sorted({name.partition("/")[0] for name in names})
    return [checkpoint / name for component in components for name in weights_of(component, names)]


def distances(one: Path, other: Path) -> Distances:
    """Return ‖W₁ - W₂‖ of each tensor, by component and name; see `MethodSpec.distances`."""
    import torch
    from safetensors import SafetensorError

    apart: dict[str, float] = {}
    norms: dict[str, float] = {}
    with ExitStack() as stack:
        try:
            opened = [_opened(stack, _files(folder)) for folder in (one, other)]
            if opened[0].keys() != opened[1].keys():
                first = min(opened[0].keys() ^ opened[1].keys())
                raise CheckpointError(f"{first!r} is in one result only: they are of different base models")
            for name in sorted(opened[0]):
                left, right = (_tensor(tensors, name) for tensors in opened)
                if left.shape != right.shape:
                    raise CheckpointError(f"{name!r} has another size in the other result")
                lengths = (torch.linalg.vector_norm(each) for each in (left - right, left, right))
                apart[name], *both = (float(length) for length in lengths)
                norms[name] = max(both)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"a file of weights cannot be read ({error})") from None
    return Distances(apart=apart, norms=norms, unit="tensor", scale="0: equal")


def _opened(stack: ExitStack, paths: list[Path]) -> dict[str, Any]:
    """Return an open file for each tensor, by component and name."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in paths:
        file = stack.enter_context(safe_open(path, framework="pt"))
        found |= {f"{path.parent.name}.{name}": file for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return found


def _tensor(opened: Mapping[str, Any], name: str) -> torch.Tensor:
    tensor: torch.Tensor = opened[name].get_tensor(name.partition(".")[2])
    return tensor.double()
