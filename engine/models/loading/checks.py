"""Check a component's configuration and weights for what Diffusers and transformers take without a word."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.components.files import is_weight
from engine.models.configs import read_json
from engine.models.single_file.header import read_header

_KEPT: Final = frozenset(("BOOL", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64"))
"""The dtypes in a safetensors file that are not those of quantised weights."""

_MODEL_TYPE: Final = "model_type"
"""A key of transformers' configurations, which those of Diffusers do not have."""

_ATTENTIONS: Final = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Keys of transformers' configurations that choose how attention is computed."""


def require_own_shards(folder: Path, variant: str | None) -> None:
    """Raise ModelError if an index of shards names a file that is not among the component's weights, which are hashed.

    transformers would load it from anywhere on the disk.
    """
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        if next((name for name in ("fp16", "bf16") if name in path.name.split(".")), None) != variant:
            continue
        shards = read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not all(_is_shard(name, variant) for name in shards.values()):
            raise ModelError(f"the base model's {folder.name}/{path.name} is malformed: download it again")


def require_unquantised(paths: Iterable[Path], component: str) -> None:
    """Raise ModelError if matrices of these files are quantised: Diffusers would take them for the weights themselves.

    Whole numbers of 16 bits and more are positions and the like.
    """
    for path in paths:
        matrices = [one for one in read_header(path, f"{component}/{path.name}").tensors.values() if len(one.shape) > 1]
        if found := sorted({one.dtype for one in matrices} - _KEPT):
            raise ModelError(
                f"the base model's {component} is stored as {', '.join(found)}, a quantised form; "
                "use the fp16 or the full-precision weights"
            )


def _is_shard(name: Any, variant: str | None) -> bool:
    return isinstance(name, str) and Path(name).name == name and is_weight(name, variant)


def require_usable(cls: Any, config: Mapping[str, Any], component: str) -> None:
    """Raise ModelError for values in a configuration that Diffusers notices only when the module computes.

    Args:
        cls: a class of Diffusers. Those of transformers check their configurations themselves.
        config: the component's configuration.
        component: its name in messages.
    """
    parameters = inspect.signature(cls.__init__).parameters
    numbers = [
        name
        for name, parameter in parameters.items()
        if parameter.annotation in (int, float) and type(parameter.default) is not bool
    ]
    wrong = [name for name in numbers if not _is_number(config.get(name, 0))]
    if _MODEL_TYPE in config:  # PEFT would take the module for one of transformers, and rename its layers
        wrong.append(_MODEL_TYPE)
    if wrong:
        raise ModelError(
            f"the base model's {component} does not load: {wrong[0]} is {str(config[wrong[0]])[:40]!r}; "
            "download it again"
        )


def require_own_attention(config: Mapping[str, Any], component: str) -> None:
    """Raise ModelError if a configuration of transformers, or a part of it, names kernels on the Hub: they are code."""
    for key, value in config.items():
        if key in _ATTENTIONS and "/" in str(value):
            raise ModelError(
                f"the base model's {component} does not load: {key} is {str(value)[:40]!r}, code from the Hub; "
                "remove it from config.json"
            )
        if isinstance(value, Mapping):
            require_own_attention(value, component)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, or null."""
    return value is None or (type(value) in (int, float) and -math.inf < value < math.inf)
