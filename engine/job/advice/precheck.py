"""Checks that need no loaded model, for `--plan` and the job. They read only headers of files. No torch."""

from __future__ import annotations

import os

from engine.core.errors import OutputError
from engine.core.files import atomic_files
from engine.core.process.gpus import num_gpus
from engine.job import memory
from engine.job.advice import disk_space
from engine.job.job import Job
from engine.results.checkpoint import Checkpoint
from engine.results.output.contents import Claim, OutputContents
from engine.task.settings import Settings
from engine.training.methods.warm_start import WarmStart


def check_method(job: Job) -> list[str]:
    """Check what the training method can check before a model is loaded; return lines on what was not checked.

    Raises:
        JobError: the task asks for something that the base model, or the weights to start from, do not have.
    """
    return job.method.check(job.base, job.task, job.parent if isinstance(job.parent, WarmStart) else None)


def check_output(job: Job, output: OutputContents, *, overwrite: bool) -> None:
    """Check that the job could use the output folder. Nothing is changed.

    Raises:
        OutputError: another job's result or progress is in it, it cannot be written to, or the disk is too full.
    """
    root, parent = output.root, job.parent
    is_over = isinstance(parent, Checkpoint) and parent.finished and job.step_range.num_steps == 0
    with atomic_files.writing_to(root):  # turns a PermissionError into an OutputError, as in the job
        if found := atomic_files.obstacle(root):
            raise OutputError(f"cannot write to {root}: {found}; remove it, or choose another folder")
        place = next(path for path in (root, *root.parents) if path.exists())
        if not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {root}: make {place} writable for the user that runs the job")
        if place.resolve().is_relative_to("/proc") or place.resolve().is_relative_to("/sys"):  # root passes os.access
            raise OutputError(f"cannot write to {root}: {place} is in a kernel file system; choose another folder")
        if job.in_place and is_over:  # the job would find nothing to do
            return
        if output.look(job.record, in_place=job.in_place, overwrite=overwrite) is not Claim.FINISHED:
            disk_space.require(job, root)


def check_device(settings: Settings) -> list[str]:
    """Return a note where no GPU is visible; the job may run on another machine, so this is not an error."""
    if settings.device == "cpu" or num_gpus():
        return []
    return [
        "note: no GPU is visible here, and without one the job ends with code 9: start the container with --gpus all, "
        "or set DEVICE=cpu to train on the CPU"
    ]


def check_memory(job: Job, machine: memory.Machine) -> None:
    """Refuse a job that is predicted to take far more memory than could be available.

    Args:
        job: the job.
        machine: where it runs; its processes are those on this machine, which share the memory, as far as is known.

    Raises:
        DeviceMemoryError: the message says what should fit.
    """
    most = machine.available
    if machine.device == "cpu" and (most := memory.most_bytes()) is not None:
        most //= machine.num_processes
    continues = isinstance(job.parent, Checkpoint)
    memory.require_enough(job.base, job.task, machine, most=most, continues=continues)
