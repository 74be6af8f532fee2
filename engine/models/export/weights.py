"""A component's weights on disk as tensors that are read one at a time, under Diffusers' names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

from engine.core.errors import JobError, ModelError, TaskError
from engine.models.base_model import BaseModel
from engine.models.components.files import is_weight
from engine.models.configs import read_json
from engine.models.single_file.header import read_header
from engine.models.single_file.layouts import Part, is_buffer, original_name
from engine.models.single_file.original_names import Place, place, plain_name
from engine.results.safetensors_file import Source

Sources = Mapping[str, Source]

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Names of precisions in the command line -> dtypes."""
_STORED: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A component's configuration and weights."""

    config: Mapping[str, Any]
    """Its config.json."""
    tensors: Sources
    """Its weights by their names in Diffusers' layout, without buffers."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The files that hold just these, by the plain names (without a variant) that they have in a Diffusers folder.
    Empty if no such files are on disk."""
    rounded: Mapping[str, torch.dtype] = field(default_factory=dict)
    """The dtypes of tensors that are computed in a wider one, to which they are rounded unless another is asked for."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensor with most values."""
        largest = max(self.tensors, key=lambda name: math.prod(self.tensors[name].shape))
        return self.rounded.get(largest, self.tensors[largest].dtype)


def of_base(base: BaseModel, component: str) -> Weights:
    """Return a component's weights of a base model.

    Raises:
        ModelError: they are missing, malformed or quantised.
    """
    where, config = base.place(component), base.config(component)
    if where.weight_file is not None:
        return Weights(config=config, tensors=_sources(where.weight_file.path))
    if where.single_file is None:
        return of_folder(where.folder, base.variants[component], ModelError)
    part = where.single_file.part(component)
    return Weights(config=config, tensors=_from_original(where.single_file.path, part, config))


def of_folder(folder: Path, variant: str | None, refused: type[JobError]) -> Weights:
    """Return the weights in a component's folder of Diffusers' layout, in one file or in shards.

    Args:
        folder: the component's folder.
        variant: the variant in the files' names.
        refused: the class of the error.

    Raises:
        JobError: they are missing, malformed or quantised.
    """
    paths = [path for path in sorted(folder.glob("*.safetensors")) if is_weight(path.name, variant)]
    tensors: dict[str, Source] = {}
    files = {_without_variant(path.name, variant): path for path in paths}
    try:
        config = read_json(folder / "config.json")
        for path in paths:
            tensors |= _sources(path)
    except ModelError as error:
        raise refused(str(error)) from None
    if not tensors:
        raise refused(f"{folder} has no safetensors weights")
    return Weights(config=config, tensors=tensors, files=files)


def _without_variant(name: str, variant: str | None) -> str:
    return name.replace(f".{variant}", "", 1) if variant else name


def _sources(path: Path, prefix: str = "") -> dict[str, Source]:
    """Return a file's weights whose names begin so. Raises ModelError if they are malformed or quantised."""
    found: dict[str, Source] = {}
    header = read_header(path, path.name)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    for name, tensor in header.tensors.items():
        if is_buffer(name) or not name.startswith(prefix):
            continue
        if tensor.dtype not in _STORED:
            raise ModelError(f"{path} holds {name} as {tensor.dtype}, which is not a precision of weights")
        dtype = _STORED[tensor.dtype]
        found[name] = Source(tensor.shape, dtype, partial(_read, path, data + tensor.start, dtype, tensor.shape))
    return found


def _read(path: Path, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor in memory of its own: mapped files would count as memory, and are not aligned.

    Raises:
        ModelError: the file has become shorter, or cannot be read.
    """
    tensor = torch.empty(shape, dtype=dtype)
    left: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (count := file.readinto(left)):
                left = left[count:]
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    if left:
        raise ModelError(f"{path} has become shorter while it was read")
    return tensor


def empty_module(config: Mapping[str, Any]) -> torch.nn.Module:
    """Return a component of this configuration without memory for its weights. Raises ModelError."""
    try:
        with init_empty_weights(include_buffers=False):
            if "architectures" in config:
                cls = getattr(transformers, config["architectures"][0])
                module = cls._from_config(cls.config_class(**config))
            else:
                module = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    except Exception as error:  # the libraries raise many types for malformed configurations
        raise ModelError(f"a component of the base model cannot be built from its configuration ({error})") from error
    built: torch.nn.Module = module
    return built


def _from_original(path: Path, part: Part, config: Mapping[str, Any]) -> Sources:
    """Return the weights of one part of a single file under Diffusers' names."""
    stored = {original_name(key, part): one for key, one in _sources(path, part.prefix).items()}
    found: dict[str, Source] = {}
    for own, parameter in empty_module(config).state_dict().items():
        name, shape = plain_name(part.kind, own), tuple(parameter.shape)
        where = place(part.kind, name, config)
        if where.name not in stored:
            raise ModelError(f"the base model {path} has no {part.prefix}{where.name}")
        source = stored[where.name]
        found[name] = Source(shape, source.dtype, partial(_taken, source, where, shape))
    return found


def _taken(source: Source, where: Place, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = source.read()
    if where.third is not None:
        tensor = tensor.chunk(3)[where.third]
    return (tensor.T if where.is_transposed else tensor).reshape(shape).contiguous()


def cast(name: str, source: Source, dtype: torch.dtype) -> Source:
    """Return a tensor in another dtype, rounded once when it is read.

    The reading raises TaskError if a value is beyond the range of the dtype.
    """

    def read() -> torch.Tensor:
        tensor = source.read()
        found = tensor.to(dtype)
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(tensor).all()):
            raise TaskError(f"{name} has values beyond the range of {dtype}; choose bf16 or fp32 with --dtype")
        return found

    return source if source.dtype == dtype else Source(source.shape, dtype, read)


def with_dtype(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """Return the weights in a dtype; None leaves each as it is stored, but float64 becomes float32."""

    def wanted_of(name: str, source: Source) -> torch.dtype:
        found = dtype or weights.rounded.get(name, source.dtype)
        return torch.float32 if found == torch.float64 else found

    wanted = {name: wanted_of(name, source) for name, source in weights.tensors.items()}
    if all(source.dtype == wanted[name] for name, source in weights.tensors.items()):
        return weights
    tensors = {name: cast(name, source, wanted[name]) for name, source in weights.tensors.items()}
    return Weights(config=weights.config, tensors=tensors)


def index_of(weights: Weights) -> bytes | None:
    """Return the index of shards for the weights' files; None for one file."""
    if len(weights.files) <= 1:
        return None
    total, where = 0, {}
    for plain, path in weights.files.items():
        for name, source in _sources(path).items():
            where[name] = plain
            total += source.num_bytes
    return as_json({"metadata": {"total_size": total}, "weight_map": where})


def as_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON file as Diffusers writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
