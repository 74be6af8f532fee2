"""Where a result was made: library versions and device, as the manifest records them. No clock, host or path."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import __version__, kernels

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


def _driver_version() -> str | None:
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
            "driver": _driver_version(),
            "machine": host["machine"],
            "instructions": host["instructions"],
            **chosen,
        }
    return {"type": "cpu", **host, "threads": torch.get_num_threads(), **chosen}
