"""The optimizers for `train_args.optimizer`. No torch until one is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from engine.task.keys.train_args import OptimizerName
from engine.task.task import TrainArgs
from engine.training.optimizers.optimizer import OptimizerSpec

if TYPE_CHECKING:
    from engine.training.optimizers.optimizer import Groups, Optimizer

OPTIMIZERS: Final[Mapping[OptimizerName, OptimizerSpec]] = {
    "adamw": OptimizerSpec(
        module="engine.training.optimizers.adamw", slots=("exp_avg", "exp_avg_sq"), reads=("adam_args",)
    ),
}


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool) -> Optimizer:
    """Make the task's optimizer over parameters in groups by learning rate; see `Optimizer`."""
    module = importlib.import_module(OPTIMIZERS[args.optimizer].module)
    optimizer: Optimizer = module.make(groups, args, is_whole_model=is_whole_model)
    return optimizer
