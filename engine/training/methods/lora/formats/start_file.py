"""Find the LoRA file to start from in a folder, and read its strength from its metadata. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from engine.core.errors import CheckpointError
from engine.core.messages import listing, shown
from engine.results import safetensors_file
from engine.training.methods.warm_start import WarmStart

LORA_FILE: Final = "pytorch_lora_weights.safetensors"
PEFT_FILE: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
"""The file that PEFT saves beside it: rank, alpha, targets."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
METADATA_KEY: Final = "lora_adapter_metadata"
"""The key under which Diffusers keeps PEFT's configuration, as JSON, in a file's metadata."""

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")


def find_start(folder: Path, names: Set[str]) -> list[str]:
    """Return the name of the LoRA file in a folder, followed by that of PEFT's configuration if it belongs to it.

    The LoRA is Diffusers' file, PEFT's, or the only .safetensors file.

    Args:
        folder: the folder, for messages.
        names: the names of its entries.

    Raises:
        CheckpointError: there is no LoRA, or there are several.
    """
    name = _lora_file(folder, names)
    return [name, PEFT_CONFIG] if name == PEFT_FILE and PEFT_CONFIG in names else [name]


def peft_config(warm_start: WarmStart) -> bytes | None:
    """Return the content of PEFT's configuration; None if the LoRA has none. Raises CheckpointError."""
    return warm_start.content(PEFT_CONFIG) if PEFT_CONFIG in warm_start.hashes else None


def _lora_file(folder: Path, names: Set[str]) -> str:
    for name in (LORA_FILE, PEFT_FILE):
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} .safetensors files ({listing(found)}): put the LoRA to start from into a "
            f"folder of its own, or rename it to {LORA_FILE}"
        )
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise CheckpointError(
            f"{folder} holds {shown(pickles[0])}, a pickle, which can run code; convert it to safetensors "
            "(docs/task.md says how)"
        )
    raise CheckpointError(
        f"{folder} holds no checkpoint (manifest.json) and no LoRA ({LORA_FILE}, or a single .safetensors file)"
    )


def header_metadata(data: bytes) -> Mapping[str, str] | None:
    """Return the metadata in the header of a safetensors file that a parser has accepted; None if it has none."""
    header, _ = safetensors_file.split(data)
    found: Mapping[str, str] | None = header.get("__metadata__")
    return found


@dataclass(frozen=True, slots=True)
class Strengths:
    """The strengths of a component's layers, by PEFT's configuration (peft/tuners/lora/config.py)."""

    alpha: float | None = None
    """None if the configuration does not give it: then all strengths are 1."""
    rank: int = 1
    use_rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    """The alphas of layers whose names end so."""
    ranks: Mapping[str, int] = field(default_factory=dict)

    def of(self, module: str) -> float:
        """Return the strength of a layer by its full name."""
        alpha = _at_end(self.alphas, module, self.alpha)
        if alpha is None:
            return 1.0
        rank = _at_end(self.ranks, module, self.rank)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def strengths(
    components: Collection[str], *, metadata: Mapping[str, str] | None, config: bytes | None
) -> dict[str, Strengths]:
    """Return each component's strengths: by PEFT's configuration if there is one, else by the file's metadata.

    Raises:
        CheckpointError: they are malformed, or given by expressions.
    """
    if config is not None:
        with _malformed("the LoRA's adapter_config.json is"):
            return dict.fromkeys(components, _strengths(json.loads(config)))
    return {component: _in_metadata(metadata or {}, component) for component in components}


def _in_metadata(metadata: Mapping[str, str], prefix: str) -> Strengths:
    """Return a component's strengths by the file's metadata; all are 1 if they do not contain them."""
    packed = metadata.get(METADATA_KEY)
    if packed is None:
        return Strengths()
    with _malformed("the LoRA file's metadata are"):
        config = json.loads(packed)
        return _strengths(
            {key.removeprefix(f"{prefix}."): value for key, value in config.items() if key.startswith(f"{prefix}.")}
        )


@contextmanager
def _malformed(what: str) -> Iterator[None]:
    """Turn the exceptions that malformed values cause in the block into a CheckpointError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{what} malformed ({error!r}); use another file") from None


def _strengths(own: Mapping[str, Any]) -> Strengths:
    if own.get("lora_alpha") is None:
        return Strengths()
    rank = int(own["r"])
    alphas = {_end(name): float(value) for name, value in (own.get("alpha_pattern") or {}).items()}
    ranks = {_end(name): int(value) for name, value in (own.get("rank_pattern") or {}).items()}
    found = Strengths(float(own["lora_alpha"]), rank, bool(own.get("use_rslora")), alphas, ranks)
    if min([rank, *ranks.values()]) < 1 or not all(map(math.isfinite, (float(own["lora_alpha"]), *alphas.values()))):
        raise ValueError("a rank below 1, or an alpha that is not finite")
    return found


def _end(name: str) -> str:
    """Return a key of PEFT's patterns, which is the end of layers' names."""
    if not re.fullmatch(r"[\w.]+", name):  # an expression, which could take any time
        raise CheckpointError(f"the LoRA's ranks or alphas are given by an expression, {shown(name)}: use another file")
    return name


def _at_end(values: Mapping[str, _Value], module: str, default: _Other) -> _Value | _Other:
    """Return the first value whose key is a whole end of a layer's name, as PEFT does (`get_pattern_key`)."""
    ends = (value for name, value in values.items() if f".{module}".endswith(f".{name}"))
    return next(ends, default)
