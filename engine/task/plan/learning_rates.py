"""Compute the learning rates before the scheduler's factor."""

from __future__ import annotations

from dataclasses import replace

from engine.task.task import TrainArgs


def base_learning_rate(args: TrainArgs, micro_batches: int) -> float:
    """Return the learning rate before the scheduler's factor.

    With `scale_lr` it is multiplied by the images of an optimizer step: `micro_batches` x batch size.
    """
    return args.learning_rate * (micro_batches * args.batch_size if args.scale_lr else 1)


def base_text_encoder_rate(args: TrainArgs, micro_batches: int) -> float:
    """Return the text encoders' learning rate before the scheduler's factor."""
    own = args.text_encoder_learning_rate
    return base_learning_rate(args if own is None else replace(args, learning_rate=own), micro_batches)
