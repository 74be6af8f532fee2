"""The files of whole-model training: a folder for each trained component, as Diffusers saves it. No torch."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final

from engine.models.spec import FamilySpec

CONFIG: Final = "config.json"
_NAME: Final = re.compile(
    r"(?P<component>[a-z][a-z0-9_]*)/(?:config\.json|(?P<stem>diffusion_pytorch_model|model)"
    r"(?:-(?P<shard>[0-9]{5})-of-(?P<count>[0-9]{5}))?\.safetensors(?P<index>\.index\.json)?)"
)
"""Names of files: `<component>/config.json`, `<component>/diffusion_pytorch_model-00001-of-00002.safetensors`, …"""


def stem_of(spec: FamilySpec, component: str) -> str:
    """Return the first part of the names of a component's weights: that of Diffusers, or of transformers."""
    return "diffusion_pytorch_model" if component == spec.denoiser else "model"


def step_ending(name: str) -> str | None:
    """Return `/<name>` if the method publishes a file of this name; see `MethodSpec.step_ending`."""
    return f"/{name}" if _NAME.fullmatch(name) else None


def is_step_ending(ending: str) -> bool:
    """Return whether `step_ending` can return this."""
    return ending.startswith("/") and _NAME.fullmatch(ending[1:]) is not None


def is_complete(names: Set[str]) -> bool:
    """Return whether the names have at least one component, and of each component the configuration and all weights."""
    components = {found["component"] for name in names if (found := _NAME.fullmatch(name))}
    return bool(components) and all(f"{one}/{CONFIG}" in names and weights_of(one, names) for one in components)


def weights_of(component: str, names: Set[str]) -> list[str]:
    """Return the names of a component's weights among these names, in order; none if one of its shards is missing."""
    found = [match for name in names if (match := _NAME.fullmatch(name)) and match["component"] == component]
    weights = sorted(match[0] for match in found if match["stem"] and not match["index"])
    shards = {(int(match["shard"]), int(match["count"])) for match in found if match["shard"] and not match["index"]}
    is_whole = shards == {(k, len(weights)) for k in range(1, len(weights) + 1)} if shards else len(weights) == 1
    return weights if is_whole else []


def index_of(component: str, names: Set[str]) -> list[str]:
    """Return the names of the indices of a component's shards among these names."""
    found = (match for name in names if (match := _NAME.fullmatch(name)))
    return sorted(match[0] for match in found if match["component"] == component and match["index"])
