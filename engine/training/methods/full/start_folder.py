"""Find a model's weights in a folder of Diffusers' layout, from which a whole-model training starts. No torch."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Final

from engine.core.errors import CheckpointError
from engine.core.messages import listing
from engine.models.registry import FAMILIES
from engine.results.checkpoint import reading
from engine.training.methods.full.files import CONFIG, index_of, weights_of

DENOISERS: Final = frozenset(spec.denoiser for spec in FAMILIES.values())
_MAX_JSON_BYTES: Final = 16 << 20
"""The index of a large model's shards has some 100 KB; parsed, a file takes twenty times as much memory."""
_TEXT_ENCODERS: Final = frozenset(name for spec in FAMILIES.values() for name in spec.text_encoders)


def find_start(folder: Path, names: Set[str]) -> list[str]:
    """Return the files of the denoiser, and of text encoders that lie beside it; see `MethodSpec.find_start`.

    Each component has a configuration and safetensors weights, in one file or in shards with an index.

    Args:
        folder: a pipeline's folder, a checkpoint of Diffusers' script, or any folder with the denoiser's folder in it.
        names: the names of its entries.

    Raises:
        CheckpointError: the denoiser is not there, or is incomplete.
    """
    denoisers = sorted(DENOISERS & names)
    wanted = " or ".join(f"{name}/" for name in sorted(DENOISERS))
    if len(denoisers) > 1:
        raise CheckpointError(f"{folder} holds {listing(denoisers)}: remove those that do not belong to the base model")
    if not denoisers:
        more = ""
        if CONFIG in names:
            more = f"; if it is the denoiser's own folder, give the folder above it, in which it is called {wanted}"
        raise CheckpointError(
            f"{folder} holds no checkpoint (manifest.json) and no denoiser in Diffusers' layout ({wanted} with "
            f"{CONFIG} and safetensors weights){more}"
        )
    return [name for one in (*denoisers, *sorted(_TEXT_ENCODERS & names)) for name in _component(folder, one)]


def _component(folder: Path, component: str) -> list[str]:
    """Return the files of a component: its weights first."""
    inside = {f"{component}/{name}" for name in reading.names_in(folder / component)}
    weights = weights_of(component, inside)
    if f"{component}/{CONFIG}" not in inside or not weights:
        found = listing(sorted(name.rpartition("/")[2] for name in inside)) or "nothing"
        raise CheckpointError(
            f"{folder / component} is incomplete: expected {CONFIG} and all safetensors weights under Diffusers' plain "
            f"names (no variant, no .bin), found {found}"
        )
    described = [*index_of(component, inside), f"{component}/{CONFIG}"]
    for name in described:
        _require_small(folder / name)
    return [*weights, *described]


def _require_small(path: Path) -> None:
    """Raise CheckpointError if a JSON file is too large to be parsed, or cannot be read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, too many for a configuration or an index; use another one")
