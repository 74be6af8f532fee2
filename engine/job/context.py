"""The objects that one run of a job works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.core.process.signals import Stop
from engine.job.job import Job
from engine.results.outcome import Outcome
from engine.results.output.folder import OutputFolder
from engine.task.settings import Settings
from engine.training.distributed.group import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The objects that one run works with, from the prepared job until its result is published."""

    settings: Settings
    job: Job
    device: torch.device
    processes: Processes
    """All processes of the job; only the first one writes to `output`."""
    output: OutputFolder
    outcome: Outcome
    stop: Stop
