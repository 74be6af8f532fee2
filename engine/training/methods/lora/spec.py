"""The row of the LoRA method: its files, its task keys, and what a chain must agree on. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.task.task import DEFAULT_TARGETS, Task
from engine.training.methods.lora.checks import check
from engine.training.methods.lora.start_file import LORA_FILE, PEFT_CONFIG, PEFT_FILE, find_start
from engine.training.methods.method import MethodSpec
from engine.training.methods.warm_start import WarmStart

WEBUI_FILE: Final = "lora_webui.safetensors"

_FILES: Final[Mapping[str, str]] = {LORA_FILE: ".safetensors", WEBUI_FILE: "_webui.safetensors"}


def invariants(task: Task) -> dict[str, Any]:
    """Return what all tasks of a chain must agree on; see `MethodSpec.invariants`."""
    lora, targets = task.lora, task.lora.target_modules
    alpha = lora.rank if lora.alpha is None else lora.alpha
    # Only where set: a checkpoint older than these options continues with a task that leaves them out.
    options = {"alpha": float(alpha) if alpha != lora.rank else None, "use_rslora": lora.use_rslora}
    return {
        "adapter": "loftq" if lora.init_lora_weights == "loftq" else "lora",
        "rank": lora.rank,
        "target_modules": targets if isinstance(targets, str) else sorted(targets or DEFAULT_TARGETS),
        **{key: value for key, value in options.items() if value},
    }


def settings(task: Task) -> dict[str, Any]:
    """Return what may change in a chain and is recorded where it is set; see `MethodSpec.settings`."""
    return {"lora": {"dropout": task.lora.dropout}} if task.lora.dropout else {}


def notes(task: Task, warm_start: WarmStart | None) -> list[str]:
    """Return what is likely a mistake; see `MethodSpec.notes`."""
    if warm_start is None:
        return []
    found = []
    if task.lora.init_lora_weights in (False, "gaussian"):
        found.append("lora.init_lora_weights has no effect: the checkpoint is a LoRA to start from")
    if warm_start.name == PEFT_FILE and warm_start.config is None:
        found.append(f"{PEFT_FILE} has no {PEFT_CONFIG} beside it: its strength, lora_alpha / r, is taken for 1")
    return found


def copies(task: Task) -> int:
    """Return how many values the saved state holds of each trained one: LoftQ's start values count."""
    return 2 if task.lora.init_lora_weights == "loftq" else 1


LORA: Final = MethodSpec(
    module="engine.training.methods.lora.method",
    files=_FILES,
    invariants=invariants,
    settings=settings,
    find_start=find_start,
    check=check,
    notes=notes,
    copies=copies,
)
