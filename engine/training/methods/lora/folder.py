"""Which file of a folder is the LoRA to start from. No torch."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Final

from engine.core.errors import CheckpointError
from engine.core.messages import listing, shown

LORA_FILE: Final = "pytorch_lora_weights.safetensors"
PEFT_FILE: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
"""What PEFT saves beside it: rank, alpha, targets."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")


def find_lora(folder: Path, names: Set[str]) -> str:
    """Return the name of the LoRA in a folder: Diffusers', PEFT's, or that of the only .safetensors file.

    Args:
        folder: for messages.
        names: of all that is in it.

    Raises:
        CheckpointError: there is none, or no telling which.
    """
    for name in (LORA_FILE, PEFT_FILE):
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} .safetensors files ({listing(found)}): put the LoRA to start from into a "
            f"folder of its own, or call it {LORA_FILE}"
        )
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise CheckpointError(
            f"{folder} holds {shown(pickles[0])}, a pickle, which can run code; convert it to safetensors "
            "(docs/task.md says how)"
        )
    raise CheckpointError(
        f"{folder} holds no checkpoint (manifest.json) and no LoRA ({LORA_FILE}, or a single .safetensors file)"
    )
