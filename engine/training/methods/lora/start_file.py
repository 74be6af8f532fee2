"""Find the LoRA file to start from in a folder, and read its strength from its metadata. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from engine.core.errors import CheckpointError
from engine.core.messages import listing, shown
from engine.results import safetensors_file
from engine.training.methods.warm_start import WarmStart

LORA_FILE: Final = "pytorch_lora_weights.safetensors"
PEFT_FILE: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
"""The file that PEFT saves beside it: rank, alpha, targets."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
_METADATA_KEY: Final = "lora_adapter_metadata"


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


def strengths(
    components: Collection[str], *, metadata: Mapping[str, str] | None, config: bytes | None
) -> dict[str, float]:
    """Return each component's strength: by PEFT's configuration if there is one, else by the file's metadata.

    Raises:
        CheckpointError: they are malformed, or differ between layers.
    """
    if config is not None:
        with _malformed("the LoRA's adapter_config.json is"):
            return dict.fromkeys(components, _scale(json.loads(config)))
    return {component: _metadata_scale(metadata or {}, component) for component in components}


def _metadata_scale(metadata: Mapping[str, str], prefix: str) -> float:
    """Return the strength of the adapter by the file's metadata, alpha / rank; 1 if they do not contain it."""
    packed = metadata.get(_METADATA_KEY)
    if packed is None:
        return 1.0
    with _malformed("the LoRA file's metadata are"):
        config = json.loads(packed)
        return _scale(
            {key.removeprefix(f"{prefix}."): value for key, value in config.items() if key.startswith(f"{prefix}.")}
        )


@contextmanager
def _malformed(what: str) -> Iterator[None]:
    """Turn the exceptions that malformed values cause in the block into a CheckpointError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{what} malformed ({error!r}); use another file") from None


def _scale(own: Mapping[str, Any]) -> float:
    if own.get("alpha_pattern"):
        raise CheckpointError("the LoRA file gives its layers different alphas in its metadata, which is not supported")
    if "lora_alpha" not in own:
        return 1.0
    rank = int(own["r"])
    scale = float(own["lora_alpha"]) / (math.sqrt(rank) if own.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError(f"strength {scale}")
    return scale
