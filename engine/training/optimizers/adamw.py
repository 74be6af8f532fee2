"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): torch's implementation, with an exact state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from engine.results.state import OptimizerState
from engine.task.task import TrainArgs
from engine.training.optimizers.layout import like_parameter
from engine.training.optimizers.optimizer import Groups, Total
from engine.training.optimizers.slots import expected_of, require_fit, require_not_negative
from engine.training.optimizers.updates import joined, require_float32

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
        self.expected = expected_of(like_parameter(*_SLOTS), parameters)
        self._updates = 0

    def begin(self) -> None:
        """See `Optimizer.begin`. Torch allocates a LoRA's few values in the first update."""
        for parameter in self._parameters.values() if self._optimizer.defaults["fused"] else ():
            if not self._optimizer.state.get(parameter):
                self._begin(parameter)

    def _begin(self, parameter: torch.nn.Parameter) -> None:
        """Let a parameter's state be as if it had never had a gradient."""
        zeros = {slot: torch.zeros_like(parameter) for slot in _SLOTS}
        self._optimizer.state[parameter] = {"step": self._step_of(parameter), **zeros}

    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """See `Optimizer.update`."""
        require_float32(rates, 1.0 / (1.0 - self._optimizer.defaults["betas"][0]))
        for name, parameter in self._parameters.items():
            parameter.grad = gradients.get(name)
            self._count_missed(parameter)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1

    def _count_missed(self, parameter: torch.nn.Parameter) -> None:
        """Let the bias correction of a parameter count every update, although torch skips those without a gradient.

        Otherwise each parameter would need a number of updates of its own in the saved state.
        """
        state = self._optimizer.state.get(parameter)
        if parameter.grad is None and state:
            state["step"] += 1
        elif parameter.grad is not None and not state and self._updates:
            self._begin(parameter)

    def _step_of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the number of updates as torch's own state has it: float32, on the CPU, or for `fused` beside it."""
        device = parameter.device if self._optimizer.defaults["fused"] else torch.device("cpu")
        return torch.tensor(float(self._updates), dtype=torch.float32, device=device)

    def state(self) -> OptimizerState:
        """See `Optimizer.state`. Before a parameter's first gradient torch has no state, so the slots are zeros."""
        states: dict[str, dict[str, Any]] = {
            name: self._optimizer.state.get(parameter, {}) for name, parameter in self._parameters.items()
        }
        updates = {int(state["step"]) for state in states.values() if state}
        assert updates <= {self._updates}, f"the parameters' update counts differ: {sorted(updates)}"
        slots = {
            slot: {
                name: states[name][slot] if states[name] else torch.zeros_like(p)
                for name, p in self._parameters.items()
            }
            for slot in _SLOTS
        }
        return OptimizerState(slots=slots, updates=self._updates)

    def restore(self, state: OptimizerState) -> None:
        """See `Optimizer.restore`."""
        require_fit(state, self.expected)
        require_not_negative(state.slots.get("exp_avg_sq", {}))
        self._updates = state.updates
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": self._step_of(parameter),
                **{slot: state.slots[slot][name].to(parameter.device, parameter.dtype) for slot in _SLOTS},
            }


def make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) -> AdamW:
    """Make AdamW over parameters in groups, with `train_args.adam_args`.

    For a whole model it uses torch's fused implementation, which passes over the memory once and needs no more of it.
    Otherwise it uses the foreach implementation, which has the bits of the for-loop with fewer launches. The two differ
    in the last bits, so the choice depends on nothing but the training method.
    """
    adam = args.adam_args
    optimizer = torch.optim.AdamW(
        [{"params": list(group.values())} for group in groups],
        lr=0.0,
        betas=(adam.beta1, adam.beta2),
        eps=adam.epsilon,
        weight_decay=adam.weight_decay,
        foreach=not is_whole_model,
        fused=is_whole_model,
    )
    return AdamW(optimizer, joined(groups))
