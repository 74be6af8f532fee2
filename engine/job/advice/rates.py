"""Find learning rates, and constants of the optimizer, that are far from what is usual. No torch."""

from __future__ import annotations

import math
from dataclasses import fields
from operator import attrgetter
from typing import Final

from engine.core.messages import plural
from engine.job.job import Job
from engine.task.key import is_set
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.task import TrainArgs
from engine.training.optimizers.registry import OPTIMIZERS

_USUAL_IMAGES: Final = 4
"""The number of images a step for which usual learning rates hold."""
_FAR: Final = 5
"""The factor above the usual learning rate, or below that of an optimizer that finds it, at which there is a note."""


def notes(job: Job) -> list[str]:
    """Return a note for each learning rate and each constant that is far from what is usual for the optimizer."""
    row = OPTIMIZERS[job.task.train_args.optimizer]
    return (_of_found_rates(job) if row.finds_rate else _of_high_rates(job)) + _of_constants(job.task.train_args)


def _rates(job: Job) -> dict[str, float]:
    args, micro_batches = job.task.train_args, job.step_range.micro_batches
    rates = {"learning rate": base_learning_rate(args, micro_batches)}
    if args.train_text_encoder:
        rates["text encoder's learning rate"] = base_text_encoder_rate(args, micro_batches)
    return rates


def _of_found_rates(job: Job) -> list[str]:
    """Return the notes for an optimizer that finds the learning rate itself."""
    optimizer = job.task.train_args.optimizer
    return [
        f"the {name} of {rate:g} is far from what is usual for the optimizer {optimizer}: it finds the rate itself and "
        "multiplies it by this one; set learning_rate to 1 and scale_lr to false"
        for name, rate in _rates(job).items()
        if not 1 / _FAR <= rate <= _FAR
    ]


def _of_high_rates(job: Job) -> list[str]:
    """Return a note for each learning rate that is far above what is usual for the method and the optimizer.

    With Adam the rate grows with the square root of the images a step (Malladi et al. 2022, arXiv:2205.10287).
    """
    optimizer, plain = job.task.train_args.optimizer, TrainArgs()
    usual, of_whom = job.method.usual_rate, job.method.words.noun
    if optimizer != plain.optimizer:
        usual = (plain.learning_rate if usual is None else usual) * OPTIMIZERS[optimizer].rate_factor
        of_whom += f" with the optimizer {optimizer}"
    if usual is None:
        return []
    visits = job.step_range.visits_per_step
    usual *= math.sqrt(max(1.0, visits / _USUAL_IMAGES))
    return [
        f"the {name} of {rate:g} is high for {of_whom}, which may forget what it has learned: usual is about "
        f"{usual:.1g} at {plural(visits, job.medium.names.noun)} a step"
        for name, rate in _rates(job).items()
        if rate > _FAR * usual
    ]


def _of_constants(args: TrainArgs) -> list[str]:
    """Return a note for each constant of the optimizer that the task leaves at a default which is not the usual one."""
    found = []
    for key, usual in OPTIMIZERS[args.optimizer].usual.items():
        group, _, name = key.rpartition(".")
        owner = attrgetter(group)(args)
        (part,) = (part for part in fields(owner) if part.name == name)
        if not is_set(owner, part):
            default = getattr(owner, name)
            found.append(f"{key} is {default:g} by default; with the optimizer {args.optimizer} {usual:g} is usual")
    return found
