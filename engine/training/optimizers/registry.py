"""The optimizers for `train_args.optimizer`. No torch until one is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from engine.task.keys.optimizer import OptimizerName
from engine.task.task import TrainArgs
from engine.training.optimizers.layout import eight_bit, factored, like_parameter
from engine.training.optimizers.optimizer import OptimizerSpec

if TYPE_CHECKING:
    from engine.training.optimizers.optimizer import Groups, Optimizer, Total

_BETAS: Final = ("adam_args.beta1", "adam_args.beta2")
_DECAY: Final = "adam_args.weight_decay"
_EPSILON: Final = "adam_args.epsilon"

OPTIMIZERS: Final[Mapping[OptimizerName, OptimizerSpec]] = {
    "adamw": OptimizerSpec(
        module="engine.training.optimizers.adamw",
        layout=like_parameter("exp_avg", "exp_avg_sq"),
        reads=(*_BETAS, _DECAY, _EPSILON),
        lighter="adamw_8bit",
    ),
    "adamw_8bit": OptimizerSpec(
        module="engine.training.optimizers.adamw_8bit", layout=eight_bit, reads=(*_BETAS, _DECAY, _EPSILON)
    ),
    "adafactor": OptimizerSpec(module="engine.training.optimizers.adafactor", layout=factored, reads=(_DECAY,)),
    "lion": OptimizerSpec(
        module="engine.training.optimizers.lion",
        layout=like_parameter("exp_avg"),
        reads=(*_BETAS, _DECAY),
        usual={"adam_args.beta2": 0.99},
        rate_factor=1 / 6,  # the paper has 3 to 10 times smaller ones
    ),
    "prodigy": OptimizerSpec(
        module="engine.training.optimizers.prodigy",
        layout=like_parameter("exp_avg", "exp_avg_sq", "s", "start"),
        reads=(*_BETAS, _DECAY, _EPSILON),
        finds_rate=True,
    ),
}


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> Optimizer:
    """Make the task's optimizer over parameters in groups by learning rate; see `Optimizer`."""
    module = importlib.import_module(OPTIMIZERS[args.optimizer].module)
    optimizer: Optimizer = module.make(groups, args, is_whole_model=is_whole_model, total=total)
    return optimizer
