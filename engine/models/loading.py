"""Load the parts of a Diffusers folder or single file strictly: missing weights are an error, not initialised."""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import ConfigMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from engine.core.errors import ModelError, first_line
from engine.models.components.files import is_weight
from engine.models.components.offloading import named_weights, offload
from engine.models.components.place import Place
from engine.models.configs import read_json, refuse_large
from engine.models.family import Family, LoadArgs
from engine.models.quantization.layer import quantise
from engine.models.single_file import weights as single_file_weights
from engine.models.single_file.header import read_header

_CPU: Final = torch.device("cpu")

_ALIGNMENT: Final = 64
"""The alignment of torch's own allocations, in bytes."""

_CLIP_WORDS: Final = 49408
"""CLIP's vocabulary size, which its configuration may leave out."""

_KEPT: Final = frozenset(("BOOL", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64"))
"""The dtypes in a safetensors file that are not those of quantised weights."""

_STORED: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_MODEL_TYPE: Final = "model_type"
"""A key of transformers' configurations, which those of Diffusers do not have."""

_ATTENTIONS: Final = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Keys of transformers' configurations that choose how attention is computed."""

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
    config = read_config(args, component)  # raises a clear error; Diffusers would take an empty list for a path
    if issubclass(cls, ConfigMixin):
        _require_usable(cls, config, component)
    else:
        _require_own_attention(config, component)
    dtype = torch.float32 if component in args.float32 else args.dtype
    quantization = args.quantised.get(component)
    place = args.place(component)
    if place.single_file is None and (place.folder / _ADAPTER).exists():
        # transformers would load the model that it names, and the adapter: neither is hashed.
        raise ModelError(f"the base model's {component} has an {_ADAPTER}: remove it, or merge the adapter")
    if place.single_file is None and place.weight_file is None:
        _require_own_shards(place.folder, args.variants[component])
        _require_unquantised(place.weight_paths(args.variants[component]), component)
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
        _own_memory(module)
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


def _require_own_shards(folder: Path, variant: str | None) -> None:
    """Raise ModelError if an index of shards names a file that is not among the component's weights, which are hashed.

    transformers would load it from anywhere on the disk.
    """
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        if next((name for name in ("fp16", "bf16") if name in path.name.split(".")), None) != variant:
            continue
        shards = read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not all(_is_shard(name, variant) for name in shards.values()):
            raise ModelError(f"the base model's {folder.name}/{path.name} is malformed: download it again")


def _require_unquantised(paths: Iterable[Path], component: str) -> None:
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


def _require_usable(cls: Any, config: Mapping[str, Any], component: str) -> None:
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


def _require_own_attention(config: Mapping[str, Any], component: str) -> None:
    """Raise ModelError if a configuration of transformers, or a part of it, names kernels on the Hub: they are code."""
    for key, value in config.items():
        if key in _ATTENTIONS and "/" in str(value):
            raise ModelError(
                f"the base model's {component} does not load: {key} is {str(value)[:40]!r}, code from the Hub; "
                "remove it from config.json"
            )
        if isinstance(value, Mapping):
            _require_own_attention(value, component)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, or null."""
    return value is None or (type(value) in (int, float) and -math.inf < value < math.inf)


def load_part(cls: Any, args: LoadArgs, component: str, folder: Path | None) -> Any:
    """Load a component again, from another folder or not, as specified by `Family.load_part`."""
    if folder is None:
        again = replace(args, float32=frozenset(), device=_CPU)
    else:
        again = replace(
            args, folder=folder, single_file=None, elsewhere={}, variants={component: None}, dtype=torch.float32
        )
    return load_module(cls, again, component)


def load_tokenizer(cls: Any, args: LoadArgs, component: str) -> Any:
    """Load a tokenizer.

    Args:
        cls: its class in transformers, which names the files that it is made of.
        args: the base model.
        component: its sub-folder; that of its text encoder has `text_encoder` in place of `tokenizer`.

    Raises:
        ModelError: files missing or malformed, or tokens that its text encoder has no embeddings for.
    """
    place = args.place(component)
    if place.single_file is not None:
        tokenizer = single_file_weights.build_tokenizer(cls, place.single_file, component)
        if args.elsewhere:
            _require_known_tokens(tokenizer, args, component)
        return tokenizer
    _require_tokenizer_files(cls, place.folder)
    try:
        tokenizer = cls.from_pretrained(place.folder, local_files_only=True)
        words = tokenizer("a", add_special_tokens=False).input_ids
    except Exception as error:  # tokenizers raises bare Exceptions for malformed files
        raise ModelError(f"the base model's {component} does not load: {first_line(error)}") from error
    if not words:
        raise ModelError(f"the base model's {component} has no words: download it again")
    _require_known_tokens(tokenizer, args, component)
    return tokenizer


def _require_tokenizer_files(cls: Any, folder: Path) -> None:
    """Raise ModelError unless the folder has one of the sets of files that make a tokenizer of this class."""
    if not folder.is_dir():
        raise ModelError(f"the base model has no {folder.name}/; expected a folder in Diffusers' layout")
    names = {path.name for path in folder.iterdir()}
    whole = cls.vocab_files_names["tokenizer_file"]
    parts = sorted({name for key, name in cls.vocab_files_names.items() if key != "tokenizer_file"}, reverse=True)
    if whole not in names and not names.issuperset(parts):  # transformers would make an empty one
        raise ModelError(f"the base model's {folder.name} has neither {whole} nor {' and '.join(parts)}")
    for name in names & {whole, *parts, "tokenizer_config.json"}:
        refuse_large(folder / name)


def _require_known_tokens(tokenizer: Any, args: LoadArgs, component: str) -> None:
    """Raise ModelError if a tokenizer's ids have no embeddings in its text encoder."""
    config = read_config(args, component.replace("tokenizer", "text_encoder"))
    inner = config.get("text_config")  # of a model of images and text
    words = (inner if isinstance(inner, dict) else config).get("vocab_size", _CLIP_WORDS)
    token = max(tokenizer.get_vocab().values(), default=0)
    if not isinstance(words, int) or token >= words:
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
        for key, tensor in named_weights(part):
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"the base model's {name} has weights {key} that are not finite; use another base model"
                )
