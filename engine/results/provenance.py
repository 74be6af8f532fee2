"""Library versions and device with which a result was made, for the manifest. No clock, host name or path."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
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


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions that the result's bits may depend on.

    Args:
        more: packages besides those of every job (`Medium.libraries`).
    """
    found = {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *more)}
    return {"sd-lora-task": __version__, "python": platform.python_version(), **found}


def origin(device: torch.device, more: Iterable[str] = ()) -> dict[str, Any]:
    """Return the device and versions of this process, as they are written to the manifest. `more` as in `versions`."""
    return {"versions": versions(more), "device": describe_device(device)}


def extended_origins(origins: Sequence[Mapping[str, Any]], step: int, here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the origins of a task's steps when it continues at `step` with the origin `here`.

    Args:
        origins: the origins so far, each with `from_step`, the step that had been reached before it.
        step: the step that has been reached.
        here: the origin of this process (`origin`).

    Returns:
        `origins`, extended by `here` if it differs from the last one.
    """
    found = [dict(one) for one in origins]
    if not found or {key: found[-1].get(key) for key in here} != here:
        found.append({"from_step": step, **here})
    return found


def origin_of_result(origins: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """Return the entries of a result's manifest: the last origin, and if there are several, all with their steps.

    The last one made the images, even if it trained no step.
    """
    last = {key: value for key, value in origins[-1].items() if key != "from_step"}
    if len(origins) == 1:
        return last
    ends = [*(one["from_step"] for one in origins[1:]), step]
    return {**last, "origins": [{**one, "to_step": end} for one, end in zip(origins, ends, strict=True)]}


def driver_version() -> str | None:
    """Return the version of the NVIDIA kernel driver; None if it cannot be read."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", _DRIVER.read_text(errors="replace"))
        return found[1] if found else None
    return None


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return the properties of a device that a result's bits depend on.

    For a GPU: its model, memory and multiprocessors (which identify a partition), CUDA, the driver, and the host's
    architecture and instruction set, since the host draws from the posterior and reads masks. For a CPU: its model,
    instruction set, caches and number of threads. For both: the variables that choose kernels, if any is set.
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
