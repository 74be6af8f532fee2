"""The row of the LoKr method: its files, task keys and invariants. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from engine.models.spec import FamilySpec
from engine.results.report.words import Words
from engine.task.task import Task
from engine.training.methods.lokr import distance
from engine.training.methods.lokr.checks import check
from engine.training.methods.lokr.start_file import find_start
from engine.training.methods.lokr.tape import LokrTape
from engine.training.methods.lora.formats.start_file import LORA_FILE
from engine.training.methods.lora.spec import LORA, WEBUI_FILE
from engine.training.methods.lora.targets import is_target
from engine.training.methods.method import About
from engine.training.methods.usage import diffusers
from engine.training.methods.warm_start import WarmStart


def invariants(family: FamilySpec, task: Task) -> dict[str, Any]:
    """Return the method's part of a chain's invariants; see `MethodSpec.invariants`."""
    found = LORA.invariants(family, task) | {"adapter": "lokr"}
    return found if task.lora.factor is None else found | {"factor": task.lora.factor}


def notes(task: Task, warm_start: WarmStart | None) -> list[str]:
    """Return notes on what is likely a mistake; see `MethodSpec.notes`."""
    if warm_start and not task.lora.init_lora_weights:
        return ["lora.init_lora_weights has no effect: the training starts from the LoKr of the checkpoint"]
    return []


def tapes(family: FamilySpec, task: Task, value_bytes: int, norm_bytes: int) -> tuple[LokrTape, LokrTape]:
    """Return the tapes of a training step; see `MethodSpec.tapes`. Text encoders are never trained."""
    lora = task.lora
    denoiser = LokrTape(
        is_adapted=is_target(family.targets_of(family.denoiser, lora.target_modules)),
        rank=lora.rank,
        factor=lora.factor,
        width=value_bytes,
        norm_width=norm_bytes,
        is_dropping=lora.dropout > 0,
    )
    return denoiser, replace(denoiser, is_adapted=is_target(()))


def has_webui(family: FamilySpec) -> bool:
    """Return whether there is a file for web interfaces.

    Where these join layers of the base model to larger ones there is none: a Kronecker product of a part of a layer is
    none of the whole layer.
    """
    return family.has_webui and family.webui_rows is None


def usage(about: About, image: Mapping[str, Any]) -> str:
    """Return how the files are used; see `MethodSpec.usage`."""
    denoiser = about.base.family.denoiser
    loading = f'pipe.{denoiser}.load_lora_adapter(folder, weight_name="{LORA_FILE}", prefix="{denoiser}")'
    code = diffusers(about, image, load_after=[loading])
    code = f"### Diffusers\n\nDiffusers 0.42 or newer, with PEFT.\n\n{code}"
    if not has_webui(about.base.family):
        return f"{code}\n\nComfyUI does not load a LoKr of this kind of model: there is no `{WEBUI_FILE}`."
    return (
        f"{code}\n\n### ComfyUI\n\nCopy `{WEBUI_FILE}` to `ComfyUI/models/loras`, under a name of your choice, and "
        "load it with the node *Load LoRA*.\nStrength 1 is as it was trained."
    )


LOKR: Final = replace(
    LORA,
    module="engine.training.methods.lokr.method",
    words=Words(
        noun="a LoKr",
        many="LoKrs",
        new="a new LoKr",
        trained="the LoKr",
        title="LoKr training",
        event="lora",
    ),
    reads=("lora",),
    is_in=distance.is_in,
    distances=distance.distances,
    published="engine.training.methods.lokr.published",
    invariants=invariants,
    find_start=find_start,
    check=check,
    notes=notes,
    tapes=tapes,
    copies=lambda task: 1,
    hub_tags=("lokr", "template:sd-lora"),
    usage=usage,
)
