"""The training state as one value, and its conversion to files: safetensors and a JSON value, exact both ways.

This module depends neither on the training method nor on the optimizer: code that restores a state checks that its
`slots` and `start` fit the training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from engine.core.errors import CheckpointError
from engine.core.files.atomic_files import Pieces, Stored
from engine.results.checkpoint import STATE_STEM
from engine.results.safetensors_file import Source, in_order, pieces, reading, shards, source_of
from engine.results.safetensors_file.reading import DamagedFileError, Entry, Reader, open_file

Tensors = dict[str, torch.Tensor]

MAX_FLOAT32: Final = float(torch.finfo(torch.float32).max)

# First parts of the tensors' names in the state's files; every other first part is an optimizer slot.
_TRAINED: Final = "adapter"
_START: Final = "initial"
_EMA: Final = "ema"


class DamagedStateError(CheckpointError):
    """An error for a file of the state that is missing or damaged."""


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
    """Tensors of float32, or codes of uint8, by slot and parameter."""
    updates: int
    """Number of updates. It may be less than the global step: fp16 skips the update if a gradient is not finite."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers of the whole training, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Everything that an exact continuation needs. All tensors are float32, but for the optimizer's codes.

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
    if state.optimizer.numbers:
        scalars["optimizer_numbers"] = dict(state.optimizer.numbers)
    return tensors, scalars


def state_files(state: TrainState) -> tuple[dict[str, Pieces], dict[str, Any]]:
    """Return the files of the state's tensors by name, and the rest as a JSON value.

    The names are `state.safetensors`, or `state-00001-of-00002.safetensors` and so on where the state is large. The
    pieces are to be used in this order and before the next step.
    """
    tensors, scalars = flatten_state(state)
    return {name: partial(pieces, own) for name, own in shards(_sources(tensors), STATE_STEM).items()}, scalars


def _sources(tensors: Mapping[str, torch.Tensor | Source]) -> dict[str, Source]:
    return {name: one if isinstance(one, Source) else source_of(one) for name, one in tensors.items()}


def read_along(state: TrainState) -> None:
    """Fetch the tensors that have to be fetched, in the order in which another process does that writes the files."""
    tensors, _ = flatten_state(state)
    sources = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Source)}
    for own in shards(_sources(tensors), STATE_STEM).values():
        for name in in_order(own):
            if name in sources:
                sources[name].read()


def weights_digest(trained: Tensors) -> str:
    """Return the SHA-256, in hex, over the names and little-endian float32 bytes of tensors, ordered by name.

    The tensors of `TrainState.trained` are in a checkpoint's `state.safetensors` as `adapter.<name>`.
    """
    digest = hashlib.sha256()
    for name in sorted(trained):
        digest.update(name.encode() + b"\0")
        digest.update(trained[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_state(
    files: Mapping[str, Stored],
    scalars: Mapping[str, Any],
    opening: Callable[[Path], AbstractContextManager[Reader]] = open_file,
    owned: Callable[[Mapping[str, int]], Collection[str]] | None = None,
) -> TrainState:
    """Read a state that was written with `state_files`, each file once. Tensors own their memory.

    Of parameters that are not owned only the trained values are kept, so that several processes on one machine do not
    each hold the whole state.

    Args:
        files: the files of the tensors by name.
        scalars: the rest of the state.
        opening: opens a file.
        owned: returns the parameters that this process owns, for the number of values of each parameter. None if it
            owns all of them.

    Raises:
        DamagedStateError: a file is missing or damaged.
        CheckpointError: the state is malformed.
    """
    tensors: Tensors = {}
    wanted = _Wanted(owned) if owned else lambda name, entry: True
    for name, file in sorted(files.items()):
        try:
            with opening(file.path) as reader:
                found = reading.read(reader, file.sha256, wanted=wanted)
            if found.keys() & tensors.keys():
                raise ValueError("a tensor is in two files")
        except (OSError, DamagedFileError):
            raise DamagedStateError(f"{name}, a file of the training state, is missing or damaged") from None
        except ValueError as error:
            raise CheckpointError(f"the training state's {name} is malformed ({error}); use another one") from None
        tensors |= found
    return parse_state(tensors, scalars)


class _Wanted:
    """Chooses tensors of a state while it is read: the trained values, and everything else of owned parameters.

    The trained values come first in the files, since these are in the order of the names.
    """

    def __init__(self, owned: Callable[[Mapping[str, int]], Collection[str]]) -> None:
        self._find_owned = owned
        self._sizes: dict[str, int] = {}
        self._owned: Collection[str] | None = None

    def __call__(self, name: str, entry: Entry) -> bool:
        group, _, parameter = name.partition(".")
        if group == _TRAINED:
            self._sizes[parameter] = math.prod(entry.shape)
            return True
        if self._owned is None:
            self._owned = self._find_owned(self._sizes)
        # What belongs to no parameter is kept: restoring it finds that it does not fit.
        return parameter in self._owned or parameter not in self._sizes


def parse_state(tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> TrainState:
    """Return the state from its tensors, by their names in its files, and its scalars. No tensor is copied.

    Raises:
        CheckpointError: they are malformed.
    """
    try:
        groups: dict[str, Tensors] = {_TRAINED: {}, _START: {}, _EMA: {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = tensor
        loss_scale = scalars["loss_scale"]
        state = TrainState(
            global_step=_count(scalars["global_step"]),
            trained=groups.pop(_TRAINED),
            start=groups.pop(_START),
            ema=groups.pop(_EMA),
            optimizer=OptimizerState(
                groups, _count(scalars["optimizer_step"]), _numbers(scalars.get("optimizer_numbers", {}))
            ),
            loss_scale=LossScale(float(loss_scale["scale"]), _count(loss_scale["growth_tracker"]))
            if loss_scale
            else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the training state is malformed ({error!r}); use another checkpoint") from None
    for named in (state.trained, state.start, state.ema):
        _require_finite(named)
    for named in state.optimizer.slots.values():
        _require_finite({name: tensor for name, tensor in named.items() if tensor.dtype != torch.uint8})
    return state


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a counter is malformed")
    return value


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(type(one) is float and math.isfinite(one) for one in value.values()):
        raise ValueError("a number of the optimizer is malformed")
    return value


def _require_finite(named: Tensors) -> None:
    for name, tensor in named.items():
        if tensor.dtype != torch.float32 or not _is_finite(tensor):
            raise CheckpointError(f"the training state's tensor {name} is not finite float32; use another checkpoint")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite, without a copy of them: NaN is the least and the greatest of its values."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in torch.aminmax(tensor))
