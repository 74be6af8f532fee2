"""The training state as one value, and its bytes: safetensors and JSON-able scalars, exact in both directions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core.errors import CheckpointError
from engine.training.optim import LossScale, Moments

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Everything an exact continuation needs. All tensors are float32 and keyed by the adapter's parameter names."""

    global_step: int
    adapter: Tensors
    moments: Moments
    initial: Tensors = field(default_factory=dict)
    """The adapter's start values where the base was changed to make room for them (LoftQ), else empty."""
    loss_scale: LossScale | None = None
    """fp16 only."""


def flatten_state(state: TrainState) -> tuple[Tensors, dict[str, Any]]:
    """Return the state's tensors, by the names that they have in its file, and the JSON-able rest."""
    groups = {
        "adapter": state.adapter,
        "exp_avg": state.moments.exp_avg,
        "exp_avg_sq": state.moments.exp_avg_sq,
        "initial": state.initial,
    }
    tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    scalars = {
        "global_step": state.global_step,
        "optimizer_step": state.moments.step,
        "loss_scale": asdict(state.loss_scale) if state.loss_scale else None,
    }
    return tensors, scalars


def dump_state(state: TrainState) -> tuple[bytes, dict[str, Any]]:
    """The state as safetensors bytes and the JSON-able rest."""
    tensors, scalars = flatten_state(state)
    return serialise_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}), scalars


def weights_digest(adapter: Tensors) -> str:
    """SHA-256, in hex, over the names and little-endian float32 bytes of the adapter's tensors, in the order of names.

    The same tensors are in a checkpoint's `state.safetensors` as `adapter.<name>`.
    """
    digest = hashlib.sha256()
    for name in sorted(adapter):
        digest.update(name.encode() + b"\0")
        digest.update(adapter[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def parse_state(data: bytes, scalars: Mapping[str, Any]) -> TrainState:
    """The inverse of `dump_state`. Tensors own their memory.

    Raises:
        CheckpointError: the bytes are no such state.
    """
    try:
        groups: dict[str, Tensors] = {"adapter": {}, "exp_avg": {}, "exp_avg_sq": {}, "initial": {}}
        for key, tensor in parse_tensors(data).items():
            group, _, name = key.partition(".")
            groups[group][name] = tensor.clone()  # the alignment of file-backed memory can change a kernel's bits
        loss_scale = scalars["loss_scale"]
        state = TrainState(
            global_step=_count(scalars["global_step"]),
            adapter=groups["adapter"],
            moments=Moments(groups["exp_avg"], groups["exp_avg_sq"], _count(scalars["optimizer_step"])),
            initial=groups["initial"],
            loss_scale=LossScale(float(loss_scale["scale"]), _count(loss_scale["growth_tracker"]))
            if loss_scale
            else None,
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the training state is malformed ({error!r}); take another checkpoint") from None
    _check_tensors(state)
    return state


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a counter is malformed")
    return value


def _check_tensors(state: TrainState) -> None:
    shapes = {name: tensor.shape for name, tensor in state.adapter.items()}
    for named in (state.moments.exp_avg, state.moments.exp_avg_sq):
        if {name: tensor.shape for name, tensor in named.items()} != shapes:
            raise CheckpointError("the training state's moments do not belong to its adapter; take another checkpoint")
    for named in (state.adapter, state.moments.exp_avg, state.moments.exp_avg_sq, state.initial):
        for name, tensor in named.items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the training state's tensor {name} is not finite float32; take another checkpoint"
                )
    for name, tensor in state.moments.exp_avg_sq.items():
        if bool((tensor < 0).any()):
            raise CheckpointError(f"the training state's mean square of {name} is negative; take another checkpoint")
