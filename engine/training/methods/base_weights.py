"""Read the shapes of a base model's weights from the headers of its files. No torch."""

from __future__ import annotations

import re
from typing import Final

from engine.models.base_model import BaseModel
from engine.models.single_file.header import Tensor, read_header

_SHARD: Final = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")


def weight_shapes(base: BaseModel, component: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a component's tensors by name.

    Returns:
        An empty mapping unless all its weights are there under Diffusers' names: a single file has others, and
        `--plan` does not download weights.

    Raises:
        ModelError: a file is malformed.
    """
    paths = base.place(component).weight_paths(base.variants.get(component))
    shards = [match for path in paths if (match := _SHARD.search(path.name))]
    if shards and len(shards) != int(shards[0][1]):  # not all of them are downloaded
        return {}
    found: dict[str, Tensor] = {}
    for path in paths:
        found |= read_header(path, f"{component}/{path.name}").tensors
    return {name: tensor.shape for name, tensor in found.items()}
