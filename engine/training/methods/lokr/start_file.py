"""The file of a LoKr in Diffusers' format: what PEFT is told of it, and whether one can be started from. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from engine.core.errors import CheckpointError
from engine.task.task import Lora
from engine.training.methods.lora.formats.names import Shaped
from engine.training.methods.lora.formats.start_file import LORA_FILE


def find_start(folder: Path, names: Set[str]) -> list[str]:
    """Return the name of the file to start from in a folder with these entries. Raises CheckpointError."""
    if LORA_FILE in names:
        return [LORA_FILE]
    raise CheckpointError(
        f"{folder} holds no checkpoint (manifest.json) and no {LORA_FILE} of this program, the only file from which a "
        "LoKr can start: other trainers may split the weights in another way"
    )


def require_fit(tensors: Mapping[str, Shaped], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the tensors have these names and shapes; it names the first difference."""
    for name in sorted(tensors.keys() | expected.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "not there"
        wanted = expected.get(name, "not there")
        if found != wanted:
            raise CheckpointError(
                f"the checkpoint's weights do not fit this task's LoKr: {name} is {found}, here it is {wanted}; a "
                "start needs the same model, lora.rank, lora.factor and lora.target_modules"
            )


def peft_config(lora: Lora, layers: Iterable[str]) -> dict[str, Any]:
    """Return PEFT's configuration (peft/tuners/lokr/config.py) of files that apply at strength 1.

    Args:
        lora: the task's keys.
        layers: the adapted layers, by full name.
    """
    modules = sorted(layers)
    component = modules[0].partition(".")[0]
    options = {
        "r": lora.rank,
        "alpha": lora.rank,
        "decompose_factor": lora.factor or -1,
        "decompose_both": False,
        "target_modules": [name.removeprefix(f"{component}.") for name in modules],
    }
    return {f"{component}.{key}": value for key, value in options.items()}
