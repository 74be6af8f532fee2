"""`--plan`: check everything that can be checked without training, and print what would run."""

from __future__ import annotations

from dataclasses import replace

from engine.core.console import say
from engine.job import memory
from engine.job.advice import disk_space
from engine.job.advice.audit import audit
from engine.job.advice.describe import describe
from engine.job.advice.precheck import check_device, check_memory, check_method, check_output
from engine.job.prepare import prepare, read_task, recorded
from engine.results.output.contents import OutputContents
from engine.task.push import describe as describe_push
from engine.task.settings import Settings
from engine.training.distributed.launch import num_processes


def print_plan(settings: Settings) -> None:
    """Check everything that can be checked without training, and print what would run.

    Raises:
        JobError: the job itself would be refused for the same reason.
    """
    task = read_task(settings)
    job = prepare(settings, task, weights=False, say=say, before=recorded(settings, task))
    if not settings.place.is_first:
        return
    # The memory of a GPU is not known without torch.
    available = memory.available_bytes() if settings.device == "cpu" else None
    share = num_processes(settings, job.task, gpus=None)
    world_size = max(settings.place.world_size, share)
    if available is not None:
        # Each process has an equal share. A launcher's processes all count, since their machines are not known.
        available //= world_size
    machine = memory.Machine(device=settings.device, available=available, num_processes=world_size)
    predicted = memory.describe(job.base, job.task, machine)
    lines = (
        describe(job) + predicted + disk_space.describe(job) + check_device(settings) + check_method(job) + audit(job)
    )
    lines += describe_push(settings.push)
    print("\n".join(lines), flush=True)
    check_output(job, OutputContents(settings.output_dir), overwrite=settings.overwrite)
    check_memory(job, replace(machine, num_processes=share))
