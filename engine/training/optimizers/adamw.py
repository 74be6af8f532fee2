"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): torch's implementation, with an exact state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.results.state import MAX_FLOAT32, OptimizerState
from engine.task.task import TrainArgs
from engine.training.optimizers.optimizer import Groups
from engine.training.optimizers.slots import require_fit

_SLOTS: Final = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW over the parameters of one training; see `Optimizer`."""

    def __init__(self, optimizer: torch.optim.AdamW, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """
        Args:
            optimizer: torch's optimizer of the same parameters, in groups.
            parameters: all parameters by name.
        """
        self._optimizer = optimizer
        self._parameters = parameters

    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        groups = self._optimizer.param_groups
        for group, rate in zip(groups, rates, strict=True):
            if rate / (1.0 - group["betas"][0]) > MAX_FLOAT32:
                raise NonFiniteError(f"a learning rate of {rate:g} is beyond float32; try a lower learning_rate")
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> OptimizerState:
        """See `Optimizer.state`. Before the first update torch has no state, so the slots are zeros."""
        states: dict[str, dict[str, Any]] = {
            name: self._optimizer.state.get(parameter, {}) for name, parameter in self._parameters.items()
        }
        updates = {int(state["step"]) for state in states.values() if state}
        assert len(updates) <= 1, f"the parameters' update counts differ: {sorted(updates)}"
        slots = {
            slot: {
                name: states[name][slot] if states[name] else torch.zeros_like(p)
                for name, p in self._parameters.items()
            }
            for slot in _SLOTS
        }
        return OptimizerState(slots=slots, updates=updates.pop() if updates else 0)

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        require_fit(state, {slot: self._parameters for slot in _SLOTS})
        for name, tensor in state.slots["exp_avg_sq"].items():
            if bool((tensor < 0).any()):  # its square root would be NaN
                raise CheckpointError(f"the training state's mean square of {name} is negative; use another checkpoint")
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                # On the CPU in float32 for every device: torch's own choice, which its arithmetic depends on.
                "step": torch.tensor(float(state.updates), dtype=torch.float32),
                **{slot: state.slots[slot][name].to(parameter.device, parameter.dtype) for slot in _SLOTS},
            }


def make(groups: Groups, args: TrainArgs) -> AdamW:
    """Make AdamW over parameters in groups, with `train_args.adam_args`.

    It always uses torch's foreach implementation, which has the bits of the for-loop with fewer launches; the fused one
    has other bits.
    """
    adam = args.adam_args
    optimizer = torch.optim.AdamW(
        [{"params": list(group.values())} for group in groups],
        lr=0.0,
        betas=(adam.beta1, adam.beta2),
        eps=adam.epsilon,
        weight_decay=adam.weight_decay,
        foreach=True,
        fused=False,
    )
    return AdamW(optimizer, {name: parameter for group in groups for name, parameter in group.items()})
