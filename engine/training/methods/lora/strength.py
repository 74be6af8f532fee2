"""The strength that a LoRA file's own notes give it: alpha / rank, as Diffusers and PEFT write it down. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from engine.core.errors import CheckpointError

_METADATA_KEY: Final = "lora_adapter_metadata"


def header_metadata(data: bytes) -> Mapping[str, str] | None:
    """The metadata in the header of a safetensors file, whose length and JSON a parser has accepted."""
    found: Mapping[str, str] | None = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    return found


def strengths(
    components: Collection[str], *, metadata: Mapping[str, str] | None, config: bytes | None
) -> dict[str, float]:
    """Each component's strength: by PEFT's configuration where there is one, else by the file's metadata.

    Raises:
        CheckpointError: they are malformed, or give the layers different ones.
    """
    if config is not None:
        with _malformed("the LoRA's adapter_config.json is"):
            return dict.fromkeys(components, _scale(json.loads(config)))
    return {component: _metadata_scale(metadata or {}, component) for component in components}


def _metadata_scale(metadata: Mapping[str, str], prefix: str) -> float:
    """The strength that the file's metadata give the whole adapter: alpha / rank, and 1 where they say nothing."""
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
    """Turn what comes of values that nobody expects into a CheckpointError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{what} malformed ({error!r}); take another file") from None


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
