"""The row of the LoRA method: its files, task keys and invariants. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from engine.models.parts.tape import AdapterTape
from engine.models.spec import FamilySpec
from engine.results.report.words import Words
from engine.task.task import Task
from engine.training.methods.lora import distance
from engine.training.methods.lora.checks import check
from engine.training.methods.lora.formats.start_file import LORA_FILE, PEFT_CONFIG, PEFT_FILE, find_start
from engine.training.methods.lora.targets import is_target
from engine.training.methods.method import About, Change, MethodSpec
from engine.training.methods.usage import diffusers
from engine.training.methods.warm_start import WarmStart

WEBUI_FILE: Final = "lora_webui.safetensors"

_STEP_ENDINGS: Final[Mapping[str, str]] = {LORA_FILE: ".safetensors", WEBUI_FILE: "_webui.safetensors"}


def invariants(family: FamilySpec, task: Task) -> dict[str, Any]:
    """Return the method's part of a chain's invariants; see `MethodSpec.invariants`."""
    lora, targets = task.lora, family.targets_of(family.denoiser, task.lora.target_modules)
    alpha = lora.rank if lora.alpha is None else lora.alpha
    # Only where set: a checkpoint older than these options continues with a task that leaves them out.
    options = {"alpha": float(alpha) if alpha != lora.rank else None, "use_rslora": lora.use_rslora}
    return {
        "adapter": "loftq" if lora.init_lora_weights == "loftq" else "lora",
        "rank": lora.rank,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        **{key: value for key, value in options.items() if value},
    }


def notes(task: Task, warm_start: WarmStart | None) -> list[str]:
    """Return notes on what is likely a mistake; see `MethodSpec.notes`."""
    found = []
    if task.lora.factor is not None:
        found.append("lora.factor has no effect with the training_type lora")
    if warm_start is None:
        return found
    if task.lora.init_lora_weights in (False, "gaussian"):
        found.append("lora.init_lora_weights has no effect: the training starts from the LoRA of the checkpoint")
    if warm_start.name == PEFT_FILE and PEFT_CONFIG not in warm_start.hashes:
        found.append(f"{PEFT_FILE} has no {PEFT_CONFIG} beside it: its strength, lora_alpha / r, is assumed to be 1")
    return found


def tapes(family: FamilySpec, task: Task, value_bytes: int, norm_bytes: int) -> tuple[AdapterTape, AdapterTape]:
    """Return the tapes of a training step; see `MethodSpec.tapes`."""
    lora = task.lora
    denoiser = AdapterTape(
        is_adapted=is_target(family.targets_of(family.denoiser, lora.target_modules)),
        rank=lora.rank,
        width=value_bytes,
        norm_width=norm_bytes,
        is_dropping=lora.dropout > 0,
    )
    texts = family.text_lora_targets if task.train_args.train_text_encoder else ()
    return denoiser, replace(denoiser, is_adapted=is_target(texts))


def smaller(task: Task) -> Iterator[Change]:
    """Yield the task with lower and lower ranks; see `MethodSpec.smaller`."""
    for rank in (1024, 512, 256, 128, 64, 32, 16, 8, 4):
        if rank < task.lora.rank:
            yield {"lora.rank": f"{rank}"}, replace(task, lora=replace(task.lora, rank=rank))


def needs_original_weights(task: Task) -> str | None:
    """Return why LoftQ needs them; see `MethodSpec.needs_original_weights`."""
    if task.lora.init_lora_weights != "loftq":
        return None
    return "lora.init_lora_weights 'loftq' quantises the original weights itself; use only one of these keys"


def copies(task: Task) -> int:
    """Return the number of values per trained value in the saved state: LoftQ adds its start values."""
    return 2 if task.lora.init_lora_weights == "loftq" else 1


def usage(about: About, image: Mapping[str, Any]) -> str:
    """Return how the files are used; see `MethodSpec.usage`."""
    loading = f'pipe.load_lora_weights(folder, weight_name="{LORA_FILE}")'
    code = f"### Diffusers\n\n{diffusers(about, image, load_after=[loading])}"
    if not about.base.family.has_webui:
        return f"{code}\n\nComfyUI and other web interfaces do not have this kind of model: there is no `{WEBUI_FILE}`."
    found = (
        f"{code}\n\n"
        f"### ComfyUI\n\nCopy `{WEBUI_FILE}` to `ComfyUI/models/loras`, under a name of your choice, and load it with "
        "the node *Load LoRA*.\nStrength 1 is as it was trained."
    )
    if about.base.family.has_frames:
        return found
    return (
        f"{found}\n\n### AUTOMATIC1111, Forge\n\nCopy `{WEBUI_FILE}` to `models/Lora`, for example as "
        "`my-lora.safetensors`, and write\n`<lora:my-lora:1>` into the prompt."
    )


LORA: Final = MethodSpec(
    module="engine.training.methods.lora.method",
    words=Words(
        noun="a LoRA",
        many="LoRAs",
        new="a new LoRA",
        trained="the LoRA",
        title="LoRA training",
        event="lora",
    ),
    reads=("lora",),
    usual_rate=None,
    main_file=LORA_FILE,
    step_ending=_STEP_ENDINGS.get,
    is_step_ending=lambda ending: ending in _STEP_ENDINGS.values(),
    is_complete=lambda names: LORA_FILE in names,
    is_in=distance.is_in,
    distances=distance.distances,
    published="engine.training.methods.lora.published",
    invariants=invariants,
    trained_weights=lambda family, task: (),
    find_start=find_start,
    check=check,
    notes=notes,
    needs_original_weights=needs_original_weights,
    is_whole_model=False,
    tapes=tapes,
    smaller=smaller,
    lighter=None,
    copies=copies,
    hub_tags=("lora", "template:sd-lora"),
    relation="adapter",
    usage=usage,
    published_bytes=lambda task: 4 * len(_STEP_ENDINGS),  # float32 in each file
)
