"""An optimizer in one file: gradient descent with momentum, which has one slot (Polyak 1964)."""

import torch

from engine.core.errors import NonFiniteError
from engine.results.state import OptimizerState
from engine.training.optimizers.layout import like_parameter
from engine.training.optimizers.optimizer import OptimizerSpec
from engine.training.optimizers.slots import Slots

LAYOUT = like_parameter("velocity")
TOY_OPTIMIZER = OptimizerSpec(module=__name__, layout=LAYOUT)


class Momentum:
    def __init__(self, groups):
        self._groups = groups
        self._slots = Slots(LAYOUT, {name: p for group in groups for name, p in group.items()})
        self._updates = 0

    def begin(self):
        self._slots.begin()

    @torch.no_grad()
    def update(self, gradients, rates):
        if max(rates) > 1e30:
            raise NonFiniteError("the learning rate is beyond float32")
        self.begin()
        velocity = self._slots["velocity"]
        for group, rate in zip(self._groups, rates, strict=True):
            for name, parameter in group.items():
                if name in gradients:
                    parameter.sub_(rate * velocity[name].mul_(0.9).add_(gradients[name]))
        self._updates += 1

    def state(self):
        self.begin()
        return OptimizerState(self._slots.all(), self._updates)

    def restore(self, state):
        self._slots.take(state)
        self._updates = state.updates


def make(groups, args, *, is_whole_model, total):
    return Momentum(groups)
