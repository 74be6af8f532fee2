"""Load the parts of a Diffusers folder or single file strictly: missing weights are an error, not initialised."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from engine.core.errors import ModelError, first_line
from engine.models.family import Family, LoadArgs
from engine.models.single_file import weights as single_file_weights

_ALIGNMENT: Final = 64
"""The alignment of torch's own allocations, in bytes."""

_ADAPTER: Final = "adapter_config.json"
"""PEFT's file beside an adapter, which is no part of a model's folder."""

for logging in (transformers_logging, diffusers_logging):
    logging.disable_progress_bar()  # of shards, among a job's own lines


def read_config(args: LoadArgs, component: str, name: str = "config.json") -> dict[str, Any]:
    """Return one of a component's JSON files; {} for an optional component that the base model does not have.

    Raises:
        ModelError: missing or malformed.
    """
    if component in args.absent:
        return {}
    return args.place(component).config(name)


def load_module(cls: Any, args: LoadArgs, component: str) -> Any:
    """Load a component with weights: frozen, in `args.dtype` or float32, on the CPU, not memory-mapped.

    Args:
        cls: the component's class in Diffusers or transformers.
        args: the base model.
        component: its sub-folder.

    Raises:
        ModelError: weights are missing, malformed, or of another shape than in the configuration.
    """
    read_config(args, component)  # raises a clear error; Diffusers would take an empty list for a path
    dtype = torch.float32 if component in args.float32 else args.dtype
    place = args.place(component)
    if place.single_file is None and (place.folder / _ADAPTER).exists():
        # transformers would load the model that it names, and the adapter: neither is hashed.
        raise ModelError(f"the base model's {component} has an {_ADAPTER}: remove it, or merge the adapter")
    try:
        if place.single_file is not None:
            module, info = single_file_weights.load(cls, place.single_file, component, dtype), {}
        else:
            with place.as_folder() as folder:
                module, info = cls.from_pretrained(
                    folder,
                    variant=args.variants[component],
                    # Always given: the default of transformers is the dtype in config.json, often float16.
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise many types for malformed configurations and weights
        raise ModelError(f"the base model's {component} does not load: {first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            found = sorted(map(str, info[problem]))
            raise ModelError(
                f"the base model's {component} has {len(found)} {problem.replace('_', ' ')}, e.g. {found[0]}"
            )
    module.requires_grad_(False)
    module.eval()
    if args.device.type == "cpu" and place.single_file is None:
        _own_memory(module)
    return module


def load_part(cls: Any, args: LoadArgs, component: str, folder: Path | None) -> Any:
    """Load a component again, from another folder or not, as specified by `Family.load_part`."""
    if folder is None:
        again = replace(args, float32=frozenset(), device=torch.device("cpu"))
    else:
        again = replace(
            args, folder=folder, single_file=None, elsewhere={}, variants={component: None}, dtype=torch.float32
        )
    return load_module(cls, again, component)


def load_tokenizer(cls: Any, args: LoadArgs, component: str) -> Any:
    """Load a tokenizer.

    Raises:
        ModelError: files missing or malformed.
    """
    place = args.place(component)
    if place.single_file is not None:
        return single_file_weights.build_tokenizer(cls, place.single_file, component)
    names = {path.name for path in place.folder.iterdir()}
    if not ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names):  # transformers would make an empty one
        raise ModelError(f"the base model's {component} has neither tokenizer.json nor vocab.json and merges.txt")
    try:
        tokenizer = cls.from_pretrained(place.folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions for malformed files
        raise ModelError(f"the base model's {component} does not load: {first_line(error)}") from error
    _require_known_tokens(tokenizer, args, component)
    return tokenizer


def _require_known_tokens(tokenizer: Any, args: LoadArgs, component: str) -> None:
    """Raise ModelError if a tokenizer's rows are too long for its text encoder, or its ids have no embeddings."""
    config = read_config(args, component.replace("tokenizer", "text_encoder"))
    length, positions = tokenizer.model_max_length, config.get("max_position_embeddings", 77)
    token, words = max(tokenizer.get_vocab().values(), default=0), config.get("vocab_size", 49408)
    if not 3 <= length <= positions:  # start, end, and something in between
        raise ModelError(
            f"the base model's {component} makes rows of {length:g} tokens, its text encoder takes {positions}: "
            "these parts are of different models"
        )
    if token >= words:
        raise ModelError(
            f"the base model's {component} has {token + 1} tokens, its text encoder {words}: "
            "these parts are of different models"
        )


def move_frozen(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module to a device, unless parameters of it are trained: those stay on the optimizer's device."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.to(device)


def _own_memory(module: torch.nn.Module) -> None:
    """Copy every tensor out of its file's memory map, where its alignment can change the bits of a kernel's result.

    Tensors that were converted to another dtype already have memory of their own, aligned by torch.
    """
    is_mapped = _file_maps()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() % _ALIGNMENT or is_mapped(tensor.data_ptr()):
            tensor.data = tensor.data.clone()


def _file_maps() -> Callable[[int], bool]:
    """Return a test for addresses in a file's memory map (proc(5), maps); without /proc it is always true."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return lambda address: True
    files = [line.split(" ", 1)[0].split("-") for line in lines if line.split(None, 5)[4] != "0"]  # it has an inode
    starts, ends = ([int(place[side], 16) for place in files] for side in (0, 1))

    def is_mapped(address: int) -> bool:
        number = bisect_right(starts, address) - 1  # the maps are sorted and do not overlap
        return number >= 0 and address < ends[number]

    return is_mapped


def require_finite_weights(family: Family) -> None:
    """Check the base model's weights after a loss that is not finite.

    Raises:
        ModelError: one of its weights is not finite.
    """
    for name, part in family.parts.items():
        for key, tensor in part.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"the base model's {name} has weights {key} that are not finite; use another base model"
                )
