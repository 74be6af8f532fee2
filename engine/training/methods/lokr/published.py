"""A checkpoint's LoKr: merged into its base model, or alone in another format, precision or strength."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from engine.core.canonical_json import canonical_json
from engine.core.errors import CheckpointError
from engine.core.files.built_beside import Streamed
from engine.models.export.weights import DTYPES, Weights
from engine.models.family import Tensors
from engine.models.spec import FamilySpec
from engine.results.checkpoint import Checkpoint
from engine.results.safetensors_file import Source
from engine.training.methods.lokr.layer import product
from engine.training.methods.lokr.split import ENDS, LEFT, RIGHT, RIGHT_DOWN, RIGHT_UP, modules_of
from engine.training.methods.lora.formats.start_file import LORA_FILE, METADATA_KEY, PEFT_CONFIG, PEFT_FILE
from engine.training.methods.lora.published import (
    file_of,
    load_tensors,
    metadata_in,
    read_webui,
    scaled,
    webui_file,
)

_OTHER_MODEL: Final = "the LoKr does not fit the base model"


@dataclass(frozen=True, slots=True)
class PublishedLokr:
    """The LoKr of a checkpoint; see `Published`."""

    folder: Path
    component: str
    """The component that it adapts."""
    tensors: Tensors
    """Its factors as published: float32, for strength 1, by Diffusers' names."""
    metadata: Mapping[str, str]
    """The metadata of its file."""
    config: Mapping[str, Any]
    """PEFT's configuration."""

    def components(self, spec: FamilySpec) -> Collection[str]:
        """See `Published.components`."""
        if self.component != spec.denoiser:
            raise CheckpointError(f"{_OTHER_MODEL}: it adapts {self.component}")
        return {self.component}

    def weights(self, component: str, base: Weights, spec: FamilySpec, strength: float) -> Weights:
        """See `Published.weights`: each adapted weight is W + W₁ ⊗ W₂, in float32."""
        merged, rounded = dict(base.tensors), dict[str, torch.dtype]()
        for module in modules_of(self.tensors):
            name = f"{module.removeprefix(f'{component}.')}.weight"
            factors = {end: self.tensors[f"{module}{end}"] for end in ENDS if f"{module}{end}" in self.tensors}
            source = base.tensors.get(name)
            if source is None or _size(factors) != (source.shape[0], math.prod(source.shape[1:])):
                raise CheckpointError(f"{_OTHER_MODEL}: it changes {name}, which the model has not in this size")
            rounded[name] = source.dtype
            merged[name] = Source(source.shape, torch.float32, partial(_merged, name, source, factors, strength))
        return Weights(config=base.config, tensors=merged, rounded=rounded)

    def alone(self, layout: str, strength: float, dtype_name: str) -> Streamed | Mapping[str, bytes | Streamed]:
        """See `Published.alone`. The strength is in W₁."""
        dtype = DTYPES[dtype_name]
        if layout == "webui":
            stored, metadata = read_webui(self.folder)
            return webui_file(scaled(stored, LEFT, strength, dtype), metadata)
        sources = scaled(self.tensors, LEFT, strength, dtype)
        if layout != "peft":
            return file_of(sources, self.metadata)
        own = {f"base_model.model.{name.partition('.')[2]}": source for name, source in sources.items()}
        config = {"peft_type": "LOKR", "inference_mode": True, **self.config}
        return {PEFT_CONFIG: canonical_json(config), PEFT_FILE: file_of(own, {"format": "pt"})}


def load(folder: Path, checkpoint: Checkpoint) -> PublishedLokr:
    """Return the LoKr of a verified checkpoint. Raises CheckpointError if its file is malformed."""
    path = folder / LORA_FILE
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in load_tensors(path).items()}
    ends = re.compile("|".join(f"(?:{re.escape(end)})$" for end in ENDS))
    for module in {ends.sub("", name) for name in tensors}:
        if not _is_sound({end: tensors[f"{module}{end}"] for end in ENDS if f"{module}{end}" in tensors}):
            raise CheckpointError(f"{path} holds {module}, which is not a LoKr's layer")
    metadata = metadata_in(path)
    try:
        config = json.loads(metadata[METADATA_KEY])
        component = min(config).partition(".")[0]
        config = {key.removeprefix(f"{component}."): value for key, value in config.items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} has no metadata of a LoKr ({error!r})") from None
    return PublishedLokr(folder, component, tensors, metadata, config)


def _is_sound(factors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether these are all factors of a layer, and can be multiplied."""
    right = factors.keys() - {LEFT}
    if LEFT not in factors or right not in ({RIGHT}, {RIGHT_UP, RIGHT_DOWN}):
        return False
    if any(tensor.ndim != 2 for end, tensor in factors.items() if end != RIGHT):
        return False
    return factors[RIGHT].ndim >= 2 if RIGHT in right else factors[RIGHT_UP].shape[1] == len(factors[RIGHT_DOWN])


def _size(factors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Return the size of the product as a matrix."""
    left = factors[LEFT].shape
    right = (
        factors[RIGHT].flatten(1).shape if RIGHT in factors else (len(factors[RIGHT_UP]), factors[RIGHT_DOWN].shape[1])
    )
    return left[0] * right[0], left[1] * right[1]


def _merged(name: str, source: Source, factors: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """Return W + W₁ ⊗ W₂ in float32."""
    weight = source.read().to(torch.float32)
    weight += (product(factors) * strength).reshape(weight.shape)
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"merged with the LoKr, {name} is not finite; try a lower --strength")
    return weight
