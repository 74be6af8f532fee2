"""Find trainings, and tasks of them, that are probably shorter than was meant. No torch."""

from __future__ import annotations

from typing import Final

from engine.core.messages import plural
from engine.job.job import Job
from engine.results.checkpoint import Checkpoint
from engine.task.task import TrainArgs

_DEFAULTS = TrainArgs()
_SMALL: Final = 1000
"""The number of images up to which a dataset is one that trainings visit many times."""
_FEW: Final = 10
"""The number of visits of an image below which a training on a small dataset probably changes little."""


def notes(job: Job) -> list[str]:
    """Return a note where the training ends sooner than the task says, or a default decides its length.

    Only the first task of a training gets one.
    """
    if isinstance(job.parent, Checkpoint):
        return []
    return _beyond_the_maximum(job) or _one_epoch_of_many(job) or _one_step(job)


def _beyond_the_maximum(job: Job) -> list[str]:
    """Return a note where `num_train_…` asks for more than `max_train_…` allows."""
    args, most = job.task.train_args, job.step_range.max_steps
    wanted = args.num_train_steps or args.num_train_epochs * job.step_range.steps_per_epoch
    is_said = args.num_train_steps is not None or args.num_train_epochs != _DEFAULTS.num_train_epochs
    if not is_said or wanted <= most:
        return []
    key = "steps" if args.num_train_steps is not None else "epochs"
    number = args.num_train_steps or args.num_train_epochs
    # max_train_steps wins over max_train_epochs
    maximum = f"max_train_{key} to {number}" if args.max_train_steps is None else f"max_train_steps to {wanted}"
    return [
        f"num_train_{key} is {number:,}, but the whole training ends after {plural(most, 'step')} by {_maximum(args)}: "
        f"to train all of them, set train_args.{maximum}"
    ]


def _one_epoch_of_many(job: Job) -> list[str]:
    """Return a note where `max_train_…` is given alone: each task of the chain then trains one epoch."""
    args, step_range = job.task.train_args, job.step_range
    is_default = args.num_train_steps is None and args.num_train_epochs == _DEFAULTS.num_train_epochs
    if not is_default or step_range.finishes:
        return []
    key = "steps" if args.max_train_steps is not None else "epochs"
    number = args.max_train_steps or args.max_train_epochs
    return [
        f"this task trains {step_range.num_steps:,} of {plural(step_range.max_steps, 'step')}, one epoch by "
        f"num_train_epochs {args.num_train_epochs}: to train all of them in one task, set "
        f"train_args.num_train_{key} to {number}; otherwise the next task continues from its checkpoint"
    ]


def _one_step(job: Job) -> list[str]:
    """Return a note where the whole training is a single step because no length is given."""
    args, step_range = job.task.train_args, job.step_range
    if step_range.max_steps > 1 or args.max_train_steps is not None or args.num_train_steps is not None:
        return []
    return [
        f"the whole training is 1 step: an epoch has {plural(step_range.num_rows, 'visit')}, a step takes "
        f"{plural(step_range.visits_per_step, job.medium.names.noun)}, and the end is {_maximum(args)}; set "
        "train_args.max_train_steps and num_train_steps, such as 1000"
    ]


def few_visits(job: Job) -> list[str]:
    """Return a note where the whole training shows each image of a small dataset only a few times."""
    step_range, num_images = job.step_range, job.dataset.num_images
    visits = step_range.max_steps * step_range.visits_per_step / num_images
    if isinstance(job.parent, Checkpoint) or num_images > _SMALL or visits >= _FEW or _one_step(job):
        return []
    noun = job.medium.names.noun
    return [
        f"the whole training shows each {noun} {visits:.2g} times on average; the recipes of docs/cookbook.md show "
        "each 60 times or more: raise train_args.max_train_steps and num_train_steps"
    ]


def _maximum(args: TrainArgs) -> str:
    """Return the key that decides the length of the whole training, with its value."""
    if args.max_train_steps is not None:
        return f"max_train_steps {args.max_train_steps:,}"
    default = ", the default" if args.max_train_epochs == _DEFAULTS.max_train_epochs else ""
    return f"max_train_epochs {args.max_train_epochs:,}{default}"
