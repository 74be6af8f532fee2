"""Load the modules of a Diffusers folder or single file strictly: missing weights are an error, not initialised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import ConfigMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from engine.core.errors import ModelError, first_line
from engine.models.components.offloading import named_weights, offload
from engine.models.components.place import Place
from engine.models.family import Family, LoadArgs
from engine.models.loading.checks import (
    require_own_attention,
    require_own_shards,
    require_unquantised,
    require_usable,
)
from engine.models.loading.memory import own_memory
from engine.models.quantization.layer import quantise
from engine.models.single_file import weights as single_file_weights
from engine.models.single_file.header import read_header

_CPU: Final = torch.device("cpu")

_STORED: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_ADAPTER: Final = "adapter_config.json"
"""PEFT's file beside an adapter, which is no part of a model's folder."""

for logging in (transformers_logging, diffusers_logging):
    logging.disable_progress_bar()  # of shards, among a job's own lines


def load_module(cls: Any, args: LoadArgs, component: str, device: torch.device = _CPU) -> Any:
    """Load a component with weights: frozen, in `args.dtype` or float32; for a job on the CPU not memory-mapped.

    Weights go to their dtype and device one by one: main memory never holds the component a second time, and for a GPU
    holds no more than a tensor of it, besides pages of its files, which the kernel drops when it needs the memory.

    Args:
        cls: the component's class in Diffusers or transformers.
        args: the base model.
        component: its sub-folder.
        device: the device to load it to.

    Raises:
        ModelError: weights are missing, malformed, or of another shape than in the configuration.
    """
    config = args.config(component)  # raises a clear error; Diffusers would take an empty list for a path
    if issubclass(cls, ConfigMixin):
        require_usable(cls, config, component)
    else:
        require_own_attention(config, component)
    dtype = torch.float32 if component in args.float32 else args.dtype
    quantization = args.quantised.get(component)
    place = args.place(component)
    if place.single_file is None and (place.folder / _ADAPTER).exists():
        # transformers would load the model that it names, and the adapter: neither is hashed.
        raise ModelError(f"the base model's {component} has an {_ADAPTER}: remove it, or merge the adapter")
    if place.single_file is None and place.weight_file is None:
        require_own_shards(place.folder, args.variants[component])
        require_unquantised(place.weight_paths(args.variants[component]), component)
    variant, home = args.variants.get(component), _CPU if component in args.offloaded else device
    if quantization:
        is_mapped = place.single_file is None  # then neither memory holds more than a layer of the original weights
        read_as = _stored_dtype(place, args, dtype) if is_mapped else dtype
        module = _read(cls, place, variant, read_as, _CPU if is_mapped else device)
        quantise(module, quantization, device=device, dtype=dtype, kept_on=home)
    else:
        module = _read(cls, place, variant, dtype, home)
    module.requires_grad_(False)
    module.eval()
    if component in args.offloaded:
        offload(module, args.offloaded[component], device)
    if args.device.type == "cpu" and place.single_file is None:
        own_memory(module)
    args.require_unchanged()
    return module


def _read(cls: Any, place: Place, variant: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a component's module with its libraries. Raises ModelError."""
    try:
        if place.single_file is not None:
            return single_file_weights.load(cls, place.single_file, place.component, dtype, device)
        with place.as_folder() as folder:
            module, info = cls.from_pretrained(
                folder,
                variant=variant,
                # Always given: the default of transformers is the dtype in config.json, often float16.
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                device_map=None if device.type == "cpu" else {"": device},
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise many types for malformed configurations and weights
        raise ModelError(f"the base model's {place.component} does not load: {first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            found = sorted(map(str, info[problem]))
            raise ModelError(
                f"the base model's {place.component} has {len(found)} {problem.replace('_', ' ')}, e.g. {found[0]}"
            )
    return module


def _stored_dtype(place: Place, args: LoadArgs, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which all matrices of a component's folder are stored; `dtype` if there are several."""
    paths = place.weight_paths(args.variants.get(place.component))
    headers = [read_header(path, path.name).tensors.values() for path in paths]
    found = {tensor.dtype for tensors in headers for tensor in tensors if len(tensor.shape) > 1}
    return _STORED.get(found.pop(), dtype) if len(found) == 1 else dtype


def load_part(cls: Any, args: LoadArgs, component: str, folder: Path | None) -> Any:
    """Load a component again, from another folder or not, as specified by `Family.load_part`."""
    if folder is None:
        again = replace(args, float32=frozenset(), device=_CPU)
    else:
        again = replace(
            args, folder=folder, single_file=None, elsewhere={}, variants={component: None}, dtype=torch.float32
        )
    return load_module(cls, again, component)


def move_frozen(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module to a device, unless parameters of it are trained: those stay on the optimizer's device."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.to(device)


def require_finite_weights(family: Family) -> None:
    """Check the base model's weights after a loss that is not finite.

    Raises:
        ModelError: one of its weights is not finite.
    """
    for name, part in family.parts.items():
        for key, tensor in named_weights(part):
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"the base model's {name} has weights {key} that are not finite; use another base model"
                )
