"""The names of a model's layers in the LoRA files of kohya's tools, web interfaces and ComfyUI. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from engine.models.single_file.sgm_names import SgmNames
from engine.models.spec import FamilySpec

_FOREIGN: Final = re.compile(r"lora_(unet|transformer|te\d?)_|diffusion_model\.")
"""First part of names in these files; `lora_te2_` is that of the second text encoder."""


def is_foreign(key: str) -> bool:
    """Return whether a tensor's name is of one of these formats."""
    return _FOREIGN.match(key) is not None


def names_of(
    spec: FamilySpec, layers: Mapping[str, Collection[str]], denoiser_config: Mapping[str, Any]
) -> dict[str, str]:
    """Return the other programs' names of layers -> their full names here.

    A denoiser's layers have Diffusers' names or, in a UNet, those of Stability AI's code. In kohya's format `_` takes
    the place of each dot (networks/lora.py in sd-scripts); in ComfyUI's the name follows `diffusion_model.`
    (comfy/lora.py).

    Args:
        spec: the base model's family.
        layers: the names of all layers that could be adapted, by component.
        denoiser_config: the denoiser's configuration.
    """
    found: dict[str, str] = {}
    for component, modules in layers.items():
        for module in modules:
            full = spec.lora_name(component, module)
            own = full.removeprefix(f"{component}.")
            names = _denoiser_names(own, denoiser_config) if component == spec.denoiser else {own}
            for name in names:
                found |= dict.fromkeys(_spellings(spec, component, name), full)
    return found


def _denoiser_names(module: str, config: Mapping[str, Any]) -> set[str]:
    names = {module}
    with suppress(LookupError, ValueError):  # it is no UNet, or no layer that has such a name
        names.add(SgmNames.from_config(config).name(module))
    return names


def _spellings(spec: FamilySpec, component: str, name: str) -> Iterator[str]:
    flat = name.replace(".", "_")
    if component == spec.denoiser:
        yield from (f"lora_unet_{flat}", f"lora_transformer_{flat}", f"diffusion_model.{name}")
        return
    number = spec.text_encoders.index(component) + 1
    yield f"lora_te{number}_{flat}"
    if number == 1:
        yield f"lora_te_{flat}"


def text_encoder_of(name: str) -> str | None:
    """Return the text encoder that a layer's name in kohya's format is of; None if it is of no text encoder."""
    found = re.match(r"lora_te(\d?)_", name)
    if not found:
        return None
    number = int(found[1] or 1)
    return "text_encoder" + (f"_{number}" if number > 1 else "")
