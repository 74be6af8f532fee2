"""The learning rates before the scheduler's factor."""

import dataclasses

from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.task import TrainArgs


def test_the_base_rate():
    args = TrainArgs(learning_rate=0.5, batch_size=3, scale_lr=True)
    assert base_learning_rate(args, 4) == 6.0
    assert base_learning_rate(dataclasses.replace(args, scale_lr=False), 4) == 0.5
    assert base_text_encoder_rate(args, 4) == 6.0
    own = dataclasses.replace(args, text_encoder_learning_rate=0.25)
    assert base_text_encoder_rate(own, 4) == 3.0 and base_learning_rate(own, 4) == 6.0
    assert base_text_encoder_rate(dataclasses.replace(own, scale_lr=False), 4) == 0.25
