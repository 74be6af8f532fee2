"""AdamW, its exact state, gradient clipping, the fp16 loss scale, and the learning rate as a pure function of the step.

Nothing here remembers anything but the optimizer itself: the rate follows from the step, the loss scale is a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.task.task import AdamArgs, LrScheduleName

Parameters = Mapping[str, torch.nn.Parameter]

POLYNOMIAL_END: Final = 1e-7
"""Where the polynomial schedule ends, as in `diffusers.optimization.get_scheduler`."""

_GROWTH_INTERVAL: Final = 2000
_MAX_FLOAT32: Final = float(torch.finfo(torch.float32).max)


# --- learning rate ---


def learning_rate(base: float, schedule: LrScheduleName, step: int, *, warmup_steps: int, max_steps: int) -> float:
    """The learning rate of the step that is trained at global step `step` (from 0).

    Equal, bit for bit, to `diffusers.optimization.get_scheduler` with its defaults (one cycle, power 1). `constant`
    has no warm-up; in the others the rate rises linearly from 0 over `warmup_steps` and the curve spans the rest of
    `max_steps`. At and beyond `max_steps` the decaying schedules stay at their end.
    """
    return base * schedule_factor(base, schedule, step, warmup_steps=warmup_steps, max_steps=max_steps)


def schedule_factor(base: float, schedule: LrScheduleName, step: int, *, warmup_steps: int, max_steps: int) -> float:
    """What `learning_rate` multiplies `base` by; other rates of the same training are multiplied by the same."""
    if schedule != "constant" and step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    if schedule == "linear":
        # Not 1 - progress, which rounds differently.
        return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))
    if schedule == "polynomial":
        return _polynomial(base, progress, is_over=step >= max_steps)
    return _CURVES[schedule](progress)


def _cosine(progress: float) -> float:
    return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


_CURVES: Final[Mapping[LrScheduleName, Callable[[float], float]]] = {
    "constant": lambda _: 1.0,
    "constant_with_warmup": lambda _: 1.0,
    "cosine": _cosine,
    # With a single cycle nothing ever restarts.
    "cosine_with_restarts": _cosine,
}


def _polynomial(base: float, progress: float, *, is_over: bool) -> float:
    # A base rate at or below the end has nothing to decay to: Diffusers refuses it, but a valid task must train, and
    # rising towards the end would be no decay, so the rate is held.
    if base <= POLYNOMIAL_END:
        return 1.0
    if is_over:
        return POLYNOMIAL_END / base
    return ((base - POLYNOMIAL_END) * (1 - progress) + POLYNOMIAL_END) / base


# --- AdamW ---


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's state: float32 tensors on the CPU by parameter name, and how many updates made them.

    `step` is not the global step: an fp16 step that the loss scale skips makes no update.
    """

    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int


def make_optimizer(groups: Sequence[Parameters], adam: AdamArgs) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over all parameters; `update` brings each group's rate.

    The foreach implementation, always: it gives the for-loop's bits with fewer launches, the fused one gives others.
    """
    return torch.optim.AdamW(
        [{"params": list(group.values())} for group in groups],
        lr=0.0,
        betas=(adam.beta1, adam.beta2),
        eps=adam.epsilon,
        weight_decay=adam.weight_decay,
        foreach=True,
        fused=False,
    )


def update(
    optimizer: torch.optim.AdamW, parameters: Parameters, gradients: Sequence[torch.Tensor], rates: Sequence[float]
) -> None:
    """Make one update at each group's learning rate; `gradients` are in the order of `parameters`.

    Raises:
        NonFiniteError: the update's factor is beyond float32; nothing has changed.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate / (1.0 - group["betas"][0]) > _MAX_FLOAT32:
            raise NonFiniteError(f"a learning rate of {rate:g} is beyond float32; try a lower learning_rate")
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def optimizer_state(optimizer: torch.optim.AdamW, parameters: Parameters) -> Moments:
    """A copy of the optimizer's state. Before the first update the optimizer has none: zeros, step 0."""
    states: dict[str, dict[str, Any]] = {name: optimizer.state.get(p, {}) for name, p in parameters.items()}
    steps = {int(state["step"]) for state in states.values() if state}
    assert len(steps) <= 1, f"the parameters' update counts differ: {sorted(steps)}"
    moments = {
        kind: {name: _copied(states[name].get(kind), parameter) for name, parameter in parameters.items()}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return Moments(**moments, step=steps.pop() if steps else 0)


def restore_optimizer(optimizer: torch.optim.AdamW, parameters: Parameters, moments: Moments) -> None:
    """Give the optimizer a saved state, copied: what it does next is, bit for bit, what the saved one would have done.

    Raises:
        CheckpointError: the moments are not those of these parameters.
    """
    for kind, saved in (("exp_avg", moments.exp_avg), ("exp_avg_sq", moments.exp_avg_sq)):
        differing = sorted(
            name
            for name in saved.keys() | parameters.keys()
            if name not in saved or name not in parameters or saved[name].shape != parameters[name].shape
        )
        if differing:
            raise CheckpointError(f"the checkpoint's {kind} does not fit this adapter at {differing[0]}")
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            # A float32 tensor on the CPU wherever the parameter is: AdamW's own choice, and part of its arithmetic.
            "step": torch.tensor(float(moments.step), dtype=torch.float32),
            "exp_avg": moments.exp_avg[name].to(parameter.device, parameter.dtype, copy=True),
            "exp_avg_sq": moments.exp_avg_sq[name].to(parameter.device, parameter.dtype, copy=True),
        }


def _copied(moment: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    if moment is None:
        return torch.zeros_like(parameter, device="cpu", requires_grad=False)
    return moment.detach().to("cpu", copy=True)


# --- gradients ---


def clip(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients in place so that their total L2 norm is at most `max_norm`; 0 leaves them as they are.

    Returns:
        The total norm before: a float32 scalar on the gradients' device, not finite where a gradient is not.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        # The rule of `torch.nn.utils.clip_grads_with_norm_`, which wants parameters: multiplying by 1 costs less than
        # asking the device whether it is needed.
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


@dataclass(frozen=True, slots=True)
class LossScale:
    """The fp16 loss scale: `torch.amp.GradScaler`'s rule as a value (Micikevicius et al. 2018, arXiv:1710.03740)."""

    scale: float = 65536.0
    growth_tracker: int = 0
    """Updates in a row with finite gradients since the scale last changed."""

    def __post_init__(self) -> None:
        if not (0.0 < self.scale <= _MAX_FLOAT32 and self.growth_tracker >= 0):
            raise ValueError(f"{self.scale!r} with growth tracker {self.growth_tracker!r} is no loss scale")

    def updated(self, finite: bool) -> Self:
        """The scale after a step whose gradients were all finite, or not: half at once, double after 2000 in a row."""
        if not finite:
            return type(self)(self.scale * 0.5, 0)
        if self.growth_tracker + 1 < _GROWTH_INTERVAL:
            return type(self)(self.scale, self.growth_tracker + 1)
        grown = self.scale * 2.0
        return type(self)(grown if grown <= _MAX_FLOAT32 else self.scale, 0)

    @property
    def collapsed(self) -> bool:
        """Below 1 the scale no longer protects small gradients: the training itself is broken."""
        return self.scale < 1.0
