"""The training state as one value, and its conversion to bytes: safetensors and a JSON value, exact both ways.

This module depends neither on the training method nor on the optimizer: code that restores a state checks that its
`slots` and `start` fit the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core.errors import CheckpointError

Tensors = dict[str, torch.Tensor]

MAX_FLOAT32: Final = float(torch.finfo(torch.float32).max)

# First parts of names in `state.safetensors`; every other first part is an optimizer slot.
_TRAINED: Final = "adapter"
_START: Final = "initial"
_EMA: Final = "ema"


@dataclass(frozen=True, slots=True)
class LossScale:
    """The fp16 loss scale. Raises ValueError if a value is out of range."""

    scale: float = 65536.0
    growth_tracker: int = 0
    """Number of consecutive updates with finite gradients since the scale last changed."""

    def __post_init__(self) -> None:
        if not (0.0 < self.scale <= MAX_FLOAT32 and self.growth_tracker >= 0):
            raise ValueError(
                f"the loss scale {self.scale!r} or its growth tracker {self.growth_tracker!r} is out of range"
            )


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """The state of an optimizer."""

    slots: Mapping[str, Tensors]
    """Float32 tensors, by slot and parameter."""
    updates: int
    """Number of updates. It may be less than the global step: fp16 skips the update if a gradient is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Everything that an exact continuation needs. All tensors are float32.

    When a state is saved, its mappings may hold a `safetensors_file.Source` in place of a tensor that another process
    has.
    """

    global_step: int
    trained: Tensors
    """The trained parameters, by name."""
    optimizer: OptimizerState
    start: Tensors = field(default_factory=dict)
    """Values of the training's start that the method needs later, by parameter; empty if it needs none."""
    ema: Tensors = field(default_factory=dict)
    """The moving average of the trained parameters, by name; empty without `train_args.ema_decay`."""
    loss_scale: LossScale | None = None
    """The loss scale; None unless the precision is fp16."""


def flatten_state(state: TrainState) -> tuple[Tensors, dict[str, Any]]:
    """Return the state's tensors by their names in its file (`<group>.<parameter>`), and the rest as a JSON value."""
    groups = {_TRAINED: state.trained, _START: state.start, _EMA: state.ema, **state.optimizer.slots}
    tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    scalars = {
        "global_step": state.global_step,
        "optimizer_step": state.optimizer.updates,
        "loss_scale": asdict(state.loss_scale) if state.loss_scale else None,
    }
    return tensors, scalars


def dump_state(state: TrainState) -> tuple[bytes, dict[str, Any]]:
    """Return the state's tensors as safetensors bytes, and the rest as a JSON value."""
    tensors, scalars = flatten_state(state)
    return serialise_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}), scalars


def weights_digest(trained: Tensors) -> str:
    """Return the SHA-256, in hex, over the names and little-endian float32 bytes of tensors, ordered by name.

    The tensors of `TrainState.trained` are in a checkpoint's `state.safetensors` as `adapter.<name>`.
    """
    digest = hashlib.sha256()
    for name in sorted(trained):
        digest.update(name.encode() + b"\0")
        digest.update(trained[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def parse_state(data: bytes, scalars: Mapping[str, Any]) -> TrainState:
    """Return the state from the bytes and scalars of `dump_state`. Tensors own their memory.

    Raises:
        CheckpointError: they are malformed.
    """
    try:
        groups: dict[str, Tensors] = {_TRAINED: {}, _START: {}, _EMA: {}}
        for key, tensor in parse_tensors(data).items():
            group, _, name = key.partition(".")
            # Copied, because the alignment of file-backed memory can change a kernel's bits.
            groups.setdefault(group, {})[name] = tensor.clone()
        loss_scale = scalars["loss_scale"]
        state = TrainState(
            global_step=_count(scalars["global_step"]),
            trained=groups.pop(_TRAINED),
            start=groups.pop(_START),
            ema=groups.pop(_EMA),
            optimizer=OptimizerState(groups, _count(scalars["optimizer_step"])),
            loss_scale=LossScale(float(loss_scale["scale"]), _count(loss_scale["growth_tracker"]))
            if loss_scale
            else None,
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the training state is malformed ({error!r}); use another checkpoint") from None
    for named in (state.trained, state.start, state.ema, *state.optimizer.slots.values()):
        _require_finite(named)
    return state


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a counter is malformed")
    return value


def _require_finite(named: Tensors) -> None:
    for name, tensor in named.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"the training state's tensor {name} is not finite float32; use another checkpoint")
