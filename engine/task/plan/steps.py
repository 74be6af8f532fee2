"""Compute the optimizer steps that a task trains, and the interval of its validations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.core.errors import TaskError
from engine.task.plan.visits import MAX_VISITS
from engine.task.task import TrainArgs, Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """The optimizer steps [start_step, stop_step) of the whole training's `max_steps` that a task trains."""

    num_rows: int
    batch_size: int
    micro_batches: int
    """Micro-batches per optimizer step: processes x gradient accumulation steps. Called K in the glossary."""
    start_step: int
    stop_step: int
    max_steps: int

    @classmethod
    def of(cls, args: TrainArgs, *, num_rows: int, processes: int, start_step: int) -> StepRange:
        """Return the steps of a task: from `start_step` to min(start_step + num, max).

        If the checkpoint's step is already at or beyond `max`, the range is empty and finishes the training.

        Raises:
            TaskError: more visits than `MAX_VISITS`.
        """
        micro_batches = processes * args.gradient_accumulation_steps
        steps_per_epoch = _ceil_div(num_rows, args.batch_size * micro_batches)
        num_steps = args.num_train_steps or args.num_train_epochs * steps_per_epoch
        max_steps = args.max_train_steps or args.max_train_epochs * steps_per_epoch
        stop_step = max(start_step, min(start_step + num_steps, max_steps))
        if stop_step * args.batch_size * micro_batches > MAX_VISITS:
            raise TaskError(
                "train_args: the number of steps times the images of a step is too large; "
                "set a smaller batch_size, gradient_accumulation_steps or number of steps"
            )
        return cls(
            num_rows=num_rows,
            batch_size=args.batch_size,
            micro_batches=micro_batches,
            start_step=start_step,
            stop_step=stop_step,
            max_steps=max_steps,
        )

    def ended_at(self, step: int) -> StepRange:
        """Return the range of a task that ends at an earlier step."""
        return replace(self, stop_step=step)

    @property
    def visits_per_step(self) -> int:
        return self.batch_size * self.micro_batches

    @property
    def steps_per_epoch(self) -> int:
        return _ceil_div(self.num_rows, self.visits_per_step)

    @property
    def finishes(self) -> bool:
        """True if the task ends the whole training."""
        return self.stop_step >= self.max_steps

    @property
    def num_steps(self) -> int:
        return self.stop_step - self.start_step


def validation_interval(validation: Validation, step_range: StepRange) -> int | None:
    """Return the number of optimizer steps between validations; None if a training is validated only at its end.

    Steps are counted from the start of the whole training, so that the cuts of a chain into tasks do not matter.
    """
    if validation.every_n_steps is not None:
        return validation.every_n_steps
    if validation.every_n_epochs is not None:
        return validation.every_n_epochs * step_range.steps_per_epoch
    return None


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
