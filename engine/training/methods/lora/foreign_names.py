"""The names of a model's layers in the LoRA files of kohya's tools, web interfaces and ComfyUI. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from engine.core.errors import CheckpointError
from engine.models.parts.sgm_names import SgmNames
from engine.models.spec import FamilySpec

_ENDINGS: Final = {
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".alpha": "alpha",
}
_FOREIGN: Final = re.compile(r"lora_(unet|transformer|te\d?)_|diffusion_model\.")
"""First part of names in these files; `lora_te2_` is that of the second text encoder."""
_UNET: Final = "unet"


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
            names = _denoiser_names(own, component, denoiser_config) if component == spec.denoiser else {own}
            for name in names:
                found |= dict.fromkeys(_spellings(spec, component, name), full)
    return found


def _denoiser_names(module: str, component: str, config: Mapping[str, Any]) -> set[str]:
    names = {module}
    if component == _UNET:
        with suppress(KeyError, ValueError):  # it is no layer with weights, or none of such a UNet
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


def parse_foreign_key(
    key: str, spec: FamilySpec, components: Collection[str], names: Mapping[str, str]
) -> tuple[str, str]:
    """Return the layer of a key, by its full name, and its part: `lora_A`, `lora_B` or `alpha`.

    Args:
        key: a tensor's name in one of these formats, without an adapter's name.
        spec: the base model's family.
        components: the trained components.
        names: those of `names_of`.

    Raises:
        CheckpointError: it is of a component that is not trained, or of no layer of the base model.
    """
    stem, kind = next(
        ((key.removesuffix(ending), kind) for ending, kind in _ENDINGS.items() if key.endswith(ending)), (key, "")
    )
    if ".lora_mid." in key:
        raise CheckpointError("the LoRA file has three matrices a layer (Tucker decomposition): use another file")
    if not kind:
        raise CheckpointError(f"the LoRA file's {key} is no matrix or alpha of a LoRA; use another file")
    if stem in names:
        return names[stem], kind
    if found := re.match(r"lora_te(\d?)_", stem):
        number = int(found[1] or 1)
        component = "text_encoder" + (f"_{number}" if number > 1 else "")
        if component not in components:
            advice = "; set train_args.train_text_encoder" if component in spec.text_encoders else ""
            raise CheckpointError(f"the LoRA file also adapts {component}, which this task does not train{advice}")
    raise CheckpointError(
        f"the LoRA file's {stem} is none of the base model's layers: it is for another kind of model, or its names are "
        "not those of Diffusers, kohya's tools or ComfyUI; use one for this base model"
    )
