"""The learning rates before the scheduler's factor."""

from __future__ import annotations

from dataclasses import replace

from engine.task.task import TrainArgs


def base_learning_rate(args: TrainArgs, micro_batches: int) -> float:
    """The learning rate before the schedule's factor: x K x B with `scale_lr`."""
    return args.learning_rate * (micro_batches * args.batch_size if args.scale_lr else 1)


def base_text_encoder_rate(args: TrainArgs, micro_batches: int) -> float:
    """The same for the text encoders' LoRA."""
    own = args.text_encoder_learning_rate
    return base_learning_rate(args if own is None else replace(args, learning_rate=own), micro_batches)
