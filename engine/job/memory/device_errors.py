"""Measure the device's free memory before a job, and explain errors of the device during it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from engine.core.errors import DeviceError, DeviceMemoryError, first_line
from engine.job import memory
from engine.job.job import Job
from engine.results.checkpoint import Checkpoint
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


def available_bytes(device: torch.device, world_size: int) -> int | None:
    """Return the device's free bytes before anything is loaded; on a CPU each process gets an equal share."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    found = memory.available_bytes()
    return None if found is None else found // world_size


@contextmanager
def device_errors(job: Job, device: torch.device, machine: memory.Machine) -> Iterator[None]:
    """Turn the device's errors inside the block into errors that say what would help.

    Raises:
        DeviceMemoryError: out of memory.
        DeviceError: the device cannot be used.
    """
    try:
        yield
    # torch.OutOfMemoryError is a RuntimeError, as are cuBLAS's and others'. NumPy raises ValueError for a size beyond
    # the address space.
    except (MemoryError, RuntimeError, ValueError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            raise DeviceMemoryError(memory_advice(job, device, machine)) from error
        if any(words in str(error) for words in _UNUSABLE_DEVICE):
            raise DeviceError(f"the GPU cannot be used: {first_line(error)}") from error
        raise


def memory_advice(job: Job, device: torch.device, machine: memory.Machine) -> str:
    """Return the message for an out-of-memory error: what should fit by the prediction, else what takes less."""
    where = "this machine"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        where = f"{torch.cuda.get_device_name(device)} ({total:.0f} GiB)"
    if machine.available:
        continues = isinstance(job.parent, Checkpoint)
        advice = memory.advise(job.base, job.task, machine, continues=continues)
        if advice:
            return f"out of memory on {where}, of which {memory.gib(machine.available)} were free; {advice}"
    return f"out of memory on {where}; try {', or '.join(_lighter(job))}"


def _lighter(job: Job) -> list[str]:
    """Return changes that take less memory, where it cannot be predicted how much less."""
    args, method, advice = job.task.train_args, METHODS[job.task.training_type], []
    if job.task.mixed_precision == "no":
        advice.append('mixed_precision "bf16"')
    if args.batch_size > 1:
        steps = args.gradient_accumulation_steps * args.batch_size
        advice.append(f"batch_size 1 with gradient_accumulation_steps {steps} (as many images a step)")
    if args.resolution > _LEAST_RESOLUTION:
        advice.append(f"a resolution below {args.resolution}")
    if smaller := next(method.smaller(job.task), None):
        advice.append(f"a lower {' or '.join(smaller[0])}")
    if args.ema_decay is not None:
        advice.append("ema_decay null")
    if args.train_text_encoder:
        advice.append("train_text_encoder false")
    if method.lighter:
        advice.append(f'training_type "{method.lighter}"')
    return [*advice, "a machine with more memory"]
