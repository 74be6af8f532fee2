"""An optimizer in one file: gradient descent with momentum, which has one slot (Polyak 1964)."""

import torch

from engine.core.errors import NonFiniteError
from engine.results.state import OptimizerState
from engine.training.optimizers.optimizer import OptimizerSpec
from engine.training.optimizers.slots import require_fit

TOY_OPTIMIZER = OptimizerSpec(module=__name__, slots=("velocity",))


class Momentum:
    def __init__(self, groups):
        self._groups = groups
        self._velocity = {name: torch.zeros_like(p) for group in groups for name, p in group.items()}
        self._updates = 0

    def begin(self):
        """The state is there from the beginning."""

    @torch.no_grad()
    def update(self, gradients, rates):
        if max(rates) > 1e30:
            raise NonFiniteError("the learning rate is beyond float32")
        for group, rate in zip(self._groups, rates, strict=True):
            for name, parameter in group.items():
                if name in gradients:
                    parameter.sub_(rate * self._velocity[name].mul_(0.9).add_(gradients[name]))
        self._updates += 1

    def state(self):
        slots = {"velocity": dict(self._velocity)}
        return OptimizerState(slots, self._updates)

    def restore(self, state):
        require_fit(state, {"velocity": self._velocity})
        self._velocity = {
            name: state.slots["velocity"][name].to(value.device) for name, value in self._velocity.items()
        }
        self._updates = state.updates


def make(groups, args, *, is_whole_model):
    return Momentum(groups)
