"""Publish a trained component as a folder in Diffusers' layout, with its weights in shards where they are large."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch

from engine.models.spec import FamilySpec
from engine.results import safetensors_file
from engine.results.safetensors_file import Source
from engine.training.methods.full.files import CONFIG, stem_of
from engine.training.methods.method import Pieces

_METADATA: Final = {"format": "pt"}
"""The metadata that transformers and Diffusers write, and older versions of them require."""


def published_name(spec: FamilySpec, component: str, module: torch.nn.Module, parameter: str) -> str:
    """Return a parameter's name in its component's file: that on the Hub, which any version of transformers reads.

    Version 5 of transformers removed the outer name of a text encoder's layers (`FamilySpec.text_root`) from a class;
    in files it is still there.
    """
    is_bare = component in spec.text_encoders and spec.text_root and not hasattr(module, spec.text_root)
    return f"{spec.text_root}.{parameter}" if is_bare else parameter


def stored_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that are in the module's files, such as tables of positions, by name."""
    stored = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def exported(spec: FamilySpec, component: str, module: torch.nn.Module) -> dict[str, bytes | Pieces]:
    """Return a component's files by name: `<component>/config.json`, the weights, and an index if there are shards.

    Args:
        spec: the base model's family.
        component: the component's name.
        module: its weights, in the dtype in which they are published.
    """
    tensors = {**dict(module.named_parameters()), **stored_buffers(module)}
    sources = {
        published_name(spec, component, module, name): safetensors_file.source_of(tensor.detach())
        for name, tensor in tensors.items()
    }
    stem = stem_of(spec, component)
    files: dict[str, bytes | Pieces] = {f"{component}/{CONFIG}": _json(_config(module))}
    shards = safetensors_file.shards(sources, stem)
    for name, own in shards.items():
        files[f"{component}/{name}"] = partial(safetensors_file.pieces, own, _METADATA)
    if len(shards) > 1:
        files[f"{component}/{stem}.safetensors.index.json"] = _json(_index(shards))
    return files


def _index(shards: Mapping[str, Mapping[str, Source]]) -> dict[str, Any]:
    """Return the index of a component's shards, as Diffusers and transformers write it."""
    return {
        "metadata": {"total_size": sum(source.num_bytes for own in shards.values() for source in own.values())},
        "weight_map": {tensor: name for name, own in shards.items() for tensor in own},
    }


def _config(module: Any) -> dict[str, Any]:
    """Return the component's configuration without the folder from which it was loaded."""
    if hasattr(module, "to_json_string"):  # a Diffusers model
        config: dict[str, Any] = json.loads(module.to_json_string())
    else:
        config = json.loads(module.config.to_json_string())
        config |= {"architectures": [type(module).__name__], "dtype": str(module.dtype).removeprefix("torch.")}
    config.pop("_name_or_path", None)
    return config


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
