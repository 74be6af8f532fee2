"""Load a single file's parts as modules strictly, with Diffusers' converters of tensor names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils as converters
from safetensors import safe_open

from engine.models.family import Tensors
from engine.models.single_file import SingleFile
from engine.models.single_file.layouts import Part, is_buffer, original_name
from engine.models.single_file.vocabulary import read_vocabulary

_IGNORED: Final = ("loss.", "model_ema.")
"""Prefixes of tensors that the training of an autoencoder may have left in the file."""


def load(cls: Any, file: SingleFile, component: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a component with its weights, not memory-mapped.

    Args:
        cls: the component's class in Diffusers or transformers.
        file: the base model.
        component: its name in Diffusers' layout.
        dtype: the dtype of its weights.
        device: the device that each weight is copied to.

    Raises:
        Exception: any error of the libraries' converters and constructors; RuntimeError if weights are missing, left
            over, or of another shape than in the configuration.
    """
    part, config = file.part(component), dict(file.configs[component])
    with init_empty_weights(include_buffers=False):
        if part.kind in ("clip", "open_clip"):
            module = cls._from_config(cls.config_class(**config))
        else:
            module = cls.from_config(config)
    original = _read(file.path, part, dtype, device)
    if part.kind == "open_clip":
        original = {name: tensor for name, tensor in original.items() if not _is_behind(name, module)}
    tensors = _CONVERT[part.kind](original, module)
    if left := _num_elements(original) - _num_elements(tensors):
        raise RuntimeError(f"{left:,} of its {_num_elements(original):,} weights have no place in a {cls.__name__}")
    # Some files have a projection that this class of text encoder does not use.
    if "text_projection.weight" not in module.state_dict():
        tensors.pop("text_projection.weight", None)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.to(device)  # buffers


def build_tokenizer(cls: Any, file: SingleFile, component: str) -> Any:
    """Return CLIP's tokenizer. All layouts share one vocabulary; they differ in the padding token."""
    vocabulary, merges = read_vocabulary()
    return cls(vocab=vocabulary, merges=merges, **file.configs[component])


def _read(path: Path, part: Part, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Return copies of a part's weights by original name: a memory map's alignment can change a kernel's bits."""
    with safe_open(path, framework="pt", device="cpu") as file:
        names = {key: original_name(key, part) for key in sorted(file.keys()) if key.startswith(part.prefix)}
        return {
            name: file.get_tensor(key).to(device, dtype, copy=True)
            for key, name in names.items()
            if not (is_buffer(name) or name.startswith(_IGNORED))
        }


def _convert_unet(tensors: Tensors, module: Any) -> Tensors:
    original = {f"{converters.LDM_UNET_KEY}{name}": tensor for name, tensor in tensors.items()}
    return dict(converters.convert_ldm_unet_checkpoint(original, dict(module.config)))


def _convert_vae(tensors: Tensors, module: Any) -> Tensors:
    original = {f"{converters.LDM_VAE_KEYS[0]}{name}": tensor for name, tensor in tensors.items()}
    return dict(converters.convert_ldm_vae_checkpoint(original, dict(module.config)))


def _convert_clip(tensors: Tensors, module: Any) -> Tensors:
    return _without_wrapper(tensors, module)


def _convert_open_clip(tensors: Tensors, module: Any) -> Tensors:
    prefix = "open_clip."
    original = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    return _without_wrapper(converters.convert_open_clip_checkpoint(module, original, prefix=prefix), module)


def _is_behind(name: str, module: Any) -> bool:
    """Return whether a weight belongs to a layer after the last one that the model uses."""
    block = name.removeprefix("transformer.resblocks.")
    return block != name and int(block.partition(".")[0]) >= module.config.num_hidden_layers


def _num_elements(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _without_wrapper(tensors: Tensors, module: Any) -> Tensors:
    """Return tensors whose names fit the class: transformers 5 removed `text_model` from `CLIPTextModel` only."""
    if hasattr(module, "text_model"):
        return tensors
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


_CONVERT: Final[dict[str, Callable[[Tensors, Any], Tensors]]] = {
    "unet": _convert_unet,
    "vae": _convert_vae,
    "clip": _convert_clip,
    "open_clip": _convert_open_clip,
}
