"""A checkpoint's LoRA: merged into its base model, or alone in another format, precision or strength."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.core.canonical_json import canonical_json
from engine.core.errors import CheckpointError, TaskError
from engine.core.files.built_beside import Streamed
from engine.models.export.weights import DTYPES, Weights, cast
from engine.models.family import Tensors
from engine.models.spec import FamilySpec
from engine.results import safetensors_file
from engine.results.checkpoint import Checkpoint
from engine.results.safetensors_file import Source
from engine.training.methods.lora.formats import webui_metadata
from engine.training.methods.lora.formats.names import DOWN, UP, not_safetensors, tensor_names
from engine.training.methods.lora.formats.start_file import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from engine.training.methods.lora.spec import WEBUI_FILE

_WEBUI_UP: Final = ".lora_up.weight"
_OTHER_MODEL: Final = "the LoRA does not fit the base model"


@dataclass(frozen=True, slots=True)
class PublishedLora:
    """The LoRA of a checkpoint; see `Published`."""

    folder: Path
    tensors: Tensors
    """Its matrices as published: float32, for the original base model at strength 1, by Diffusers' names."""

    def components(self, spec: FamilySpec) -> Collection[str]:
        """See `Published.components`."""
        found = {name.partition(".")[0] for name in self.tensors}
        if unknown := sorted(found - set(spec.weighted)):
            raise CheckpointError(f"{_OTHER_MODEL}: it adapts {unknown[0]}, which the model does not have")
        return found

    def weights(self, component: str, base: Weights, spec: FamilySpec, strength: float) -> Weights:
        """See `Published.weights`: each adapted weight is W + B·A, in float32."""
        merged, rounded = dict(base.tensors), dict[str, torch.dtype]()
        left = {name for name in self.tensors if name.startswith(f"{component}.")}
        for name, source in base.tensors.items():
            module, _, kind = name.rpartition(".")
            names = tensor_names(spec.lora_name(component, module))
            if kind == "weight" and left.issuperset(names):
                left -= set(names)
                down, up = (self.tensors[own] for own in names)
                _require_fit(names[0], down, up, source)
                rounded[name] = source.dtype
                merged[name] = Source(source.shape, torch.float32, partial(_merged, name, source, down, up, strength))
        if left:
            raise CheckpointError(f"{_OTHER_MODEL}: the model has no layer for {min(left)}")
        return Weights(config=base.config, tensors=merged, rounded=rounded)

    def alone(self, layout: str, strength: float, dtype_name: str) -> Streamed | Mapping[str, bytes | Streamed]:
        """See `Published.alone`. Alphas stay equal to the ranks: the strength is in the up matrices."""
        dtype = DTYPES[dtype_name]
        if layout == "peft":
            return _peft_files(scaled(self.tensors, UP, strength, dtype), dtype_name)
        if layout == "webui":
            stored, metadata = read_webui(self.folder)
            return webui_file(scaled(stored, _WEBUI_UP, strength, dtype), metadata)
        return file_of(scaled(self.tensors, UP, strength, dtype))


def load(folder: Path, checkpoint: Checkpoint) -> PublishedLora:
    """Return the LoRA of a verified checkpoint. Raises CheckpointError if its file is malformed."""
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in load_tensors(folder / LORA_FILE).items()}
    for name in tensors:
        pair = tensor_names(name.removesuffix(DOWN).removesuffix(UP))
        if name not in pair or not tensors.keys() >= set(pair):
            raise CheckpointError(f"{folder / LORA_FILE} holds {name}, which is not half of a LoRA layer")
    return PublishedLora(folder, dict(sorted(tensors.items())))


def load_tensors(path: Path) -> Tensors:
    """Return a file's tensors. Raises CheckpointError if it is malformed."""
    try:
        found: Tensors = load_file(path)
        return found
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise not_safetensors(error) from None


def _require_fit(name: str, down: torch.Tensor, up: torch.Tensor, source: Source) -> None:
    """Raise CheckpointError unless the product of a layer's matrices has the shape of its weight."""
    out, inner, *kernel = source.shape
    rank = down.shape[0]
    expected = (rank, inner, *kernel), (out, rank, *(1 for _ in kernel))
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise CheckpointError(f"{_OTHER_MODEL}: {name} is {tuple(down.shape)}, the layer's weight {source.shape}")


def _merged(name: str, source: Source, down: torch.Tensor, up: torch.Tensor, strength: float) -> torch.Tensor:
    """Return W + B·A in float32, by PEFT's operations, so that the bits are those of Diffusers' `fuse_lora`."""
    weight = source.read().to(torch.float32)
    if weight.ndim == 2:
        change = (up @ down) * strength
    elif weight.shape[2:] == (1, 1):
        change = (up[:, :, 0, 0] @ down[:, :, 0, 0])[:, :, None, None] * strength
    else:
        change = torch.nn.functional.conv2d(down.transpose(0, 1), up).transpose(0, 1) * strength
    weight += change
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"merged with the LoRA, {name} is not finite; try a lower --strength")
    return weight


def scaled(tensors: Tensors, up_ending: str, strength: float, dtype: torch.dtype) -> dict[str, Source]:
    """Return a LoRA's tensors at a strength, in a dtype."""
    found = {}
    for name, tensor in tensors.items():
        value = tensor * strength if name.endswith(up_ending) and strength != 1 else tensor
        found[name] = cast(name, safetensors_file.source_of(value), dtype)
    return found


def file_of(sources: Mapping[str, Source], metadata: Mapping[str, str] | None = None) -> Streamed:
    """Return a safetensors file of these tensors."""
    size = sum(source.num_bytes for source in sources.values())
    return Streamed(size, lambda: safetensors_file.pieces(sources, metadata))


def read_webui(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors and the metadata of the published file for web interfaces.

    Raises:
        TaskError: there is none.
    """
    if not (folder / WEBUI_FILE).exists():  # `is_complete` has checked the others
        raise TaskError(
            "--layout webui: no web interface reads such a file for this kind of base model, so there is no "
            f"{WEBUI_FILE}; leave --layout out for Diffusers' format"
        )
    tensors = {name: tensor.clone() for name, tensor in load_tensors(folder / WEBUI_FILE).items()}
    return tensors, metadata_in(folder / WEBUI_FILE)


def metadata_in(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return dict(header.get("__metadata__", {}))


def webui_file(sources: Mapping[str, Source], metadata: Mapping[str, str]) -> Streamed:
    """Return a file for web interfaces, whose metadata have the hash of its tensors."""

    def content() -> Iterator[bytes | memoryview]:
        tensors = {name: source.read() for name, source in sources.items()}
        yield webui_metadata.serialise(tensors, metadata)  # with the hash of these very tensors

    return Streamed(sum(source.num_bytes for source in sources.values()), content)


def _peft_files(sources: Mapping[str, Source], dtype_name: str) -> dict[str, bytes | Streamed]:
    """Return the files of PEFT's layout, for `PeftModel.from_pretrained(model, folder)`.

    Raises:
        TaskError: text encoders are adapted, too: PEFT's files are of one model.
    """
    components = sorted({name.partition(".")[0] for name in sources})
    if len(components) > 1:
        raise TaskError(
            f"PEFT's files are of one model, and this LoRA adapts {', '.join(components)}: use --layout diffusers"
        )
    own = {name.removeprefix(f"{components[0]}."): source for name, source in sources.items()}
    ranks = {name.removesuffix(DOWN): one.shape[0] for name, one in own.items() if name.endswith(DOWN)}
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {name: own_rank for name, own_rank in ranks.items() if own_rank != rank},
        "alpha_pattern": {name: own_rank for name, own_rank in ranks.items() if own_rank != rank},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    return {
        PEFT_CONFIG: canonical_json(config),
        PEFT_FILE: file_of({f"base_model.model.{name}": source for name, source in own.items()}, {"format": "pt"}),
    }
