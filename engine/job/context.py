"""The objects that one run of a job works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.core.process.signals import Stop
from engine.job.job import Job
from engine.results.outcome import Outcome
from engine.results.output.folder import OutputFolder
from engine.task.settings import Settings
from engine.training.distributed.processes import Processes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The objects that one run works with as soon as the job is prepared, before torch is imported."""

    settings: Settings
    job: Job
    processes: Processes
    """All processes of the job; only the first one writes to `output`."""
    output: OutputFolder
    outcome: Outcome
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext(JobContext):
    """The objects that one run works with, from the opened device until its result is published."""

    device: torch.device
