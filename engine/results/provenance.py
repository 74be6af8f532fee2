"""Where a result was made: library versions and device, as the manifest records them. No clock, host or path."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine import __version__
from engine.core.process import kernels

if TYPE_CHECKING:
    import torch

_DRIVER: Final = Path("/proc/driver/nvidia/version")
_LIBRARIES: Final = (
    "torch", "diffusers", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions that the bits may depend on."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"sd-lora-task": __version__, "python": platform.python_version(), **found}


def origin(device: torch.device) -> dict[str, Any]:
    """Return the device and versions of this process, as the manifest has them."""
    return {"versions": versions(), "device": describe_device(device)}


def extended_origins(origins: Sequence[Mapping[str, Any]], step: int, here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where a task's steps are trained when it goes on at `step` in the place `here`.

    Args:
        origins: where it was trained so far, each with its `from_step`, the step that was reached there before it.
        step: the step that is reached.
        here: as `origin` gives it.

    Returns:
        `origins`, with one more where it goes on in another place than the last.
    """
    found = [dict(one) for one in origins]
    if not found or {key: found[-1].get(key) for key in here} != here:
        found.append({"from_step": step, **here})
    return found


def origin_of_result(origins: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """Return what a result at `step` says of where it was made: the last place, and all with their steps if several.

    The last one made the images, even where it trained no step.
    """
    last = {key: value for key, value in origins[-1].items() if key != "from_step"}
    if len(origins) == 1:
        return last
    ends = [*(one["from_step"] for one in origins[1:]), step]
    return {**last, "origins": [{**one, "to_step": end} for one, end in zip(origins, ends, strict=True)]}


def driver_version() -> str | None:
    """The NVIDIA kernel driver's version, where it tells."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", _DRIVER.read_text(errors="replace"))
        return found[1] if found else None
    return None


def describe_device(device: torch.device) -> dict[str, Any]:
    """What the bits depend on in a device.

    For a GPU its model, its memory and multiprocessors (which tell a partition), CUDA, the driver, and what its host
    computes with (the posterior's draw, masks); for a CPU its model, instruction set, caches and the number of
    threads. For both, the variables that choose kernels, where any is set.
    """
    import torch

    environment = kernels.describe_environment()
    chosen = {"environment": environment} if environment else {}
    host = kernels.describe_cpu()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": driver_version(),
            "machine": host["machine"],
            "instructions": host["instructions"],
            **chosen,
        }
    return {"type": "cpu", **host, "threads": torch.get_num_threads(), **chosen}
