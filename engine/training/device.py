"""The device: opened, its memory, and what its refusals mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from engine.core.errors import DeviceError, DeviceMemoryError
from engine.job import memory
from engine.job.job import Job
from engine.results.checkpoint import Checkpoint
from engine.task.settings import Settings
from engine.training import determinism
from engine.training.methods.registry import METHODS

_OUT_OF_MEMORY: Final = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "Storage size calculation overflowed",
    "array is too big",
)
_LEAST_RESOLUTION: Final = 64
_UNUSABLE_DEVICE: Final = ("no kernel image", "busy or unavailable", "driver version is insufficient")


def open_device(settings: Settings, mixed_precision: str) -> torch.device:
    """The device that the settings name, torch made deterministic on it.

    Raises:
        DeviceError: there is none, it cannot be used, or it lacks the precision.
    """
    determinism.switch_on(settings.cpu_threads)
    if settings.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "no CUDA device is visible: start the container with --gpus all (and an NVIDIA driver that is new enough), "
            "or set DEVICE=cpu to train on the CPU"
        )
    # A launcher may show each process its own GPU alone, or all of them.
    device = torch.device("cuda", settings.place.local_rank % torch.cuda.device_count())
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise DeviceError(f"the GPU cannot be used: {str(error).splitlines()[0]}") from error
    if mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f'{torch.cuda.get_device_name()} has no bf16; use mixed_precision "fp16" or "no"')
    return device


def available_bytes(device: torch.device, world_size: int) -> int | None:
    """The memory that is free on the device before anything is loaded; each process on a CPU has its share."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    found = memory.available_bytes()
    return None if found is None else found // world_size


@contextmanager
def device_troubles(job: Job, device: torch.device, available: int | None) -> Iterator[None]:
    """Turn the device's refusals inside the block into errors that say what would help.

    Raises:
        DeviceMemoryError: out of memory, of which `available` bytes were free before the block.
        DeviceError: the device cannot be used.
    """
    try:
        yield
    # torch.OutOfMemoryError is a RuntimeError, as are cuBLAS's and others'.
    # NumPy's word for sizes that no address reaches is a ValueError.
    except (MemoryError, RuntimeError, ValueError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            raise DeviceMemoryError(memory_advice(job, device, available)) from error
        if any(words in str(error) for words in _UNUSABLE_DEVICE):
            raise DeviceError(f"the GPU cannot be used: {str(error).splitlines()[0]}") from error
        raise


def memory_advice(job: Job, device: torch.device, available: int | None) -> str:
    """What would fit by the prediction; where that sees nothing, what takes less."""
    where = "this machine"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        where = f"{torch.cuda.get_device_name(device)} ({total:.0f} GiB)"
    if available:
        continues = isinstance(job.parent, Checkpoint)
        advice = memory.advise(job.base, job.task, device=device.type, available=available, continues=continues)
        if advice:
            return f"out of memory on {where}, of which {memory.gib(available)} were free; {advice}"
    return f"out of memory on {where}; try {', or '.join(_lighter(job))}"


def _lighter(job: Job) -> list[str]:
    """What takes less, where nothing is known of how much."""
    args, advice = job.task.train_args, []
    if job.task.mixed_precision == "no":
        advice.append('mixed_precision "bf16"')
    if args.batch_size > 1:
        steps = args.gradient_accumulation_steps * args.batch_size
        advice.append(f"batch_size 1 with gradient_accumulation_steps {steps} (as many images a step)")
    if args.resolution > _LEAST_RESOLUTION:
        advice.append(f"a resolution below {args.resolution}")
    if smaller := next(METHODS[job.task.training_type].smaller(job.task), None):
        advice.append(f"a lower {' or '.join(smaller[0])}")
    if args.train_text_encoder:
        advice.append("train_text_encoder false")
    return [*advice, "a machine with more memory"]
