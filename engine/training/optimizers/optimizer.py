"""The interface of an optimizer, and its row in the registry. No torch until a training begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from engine.task.keys.optimizer import OptimizerName
from engine.training.optimizers.layout import Layout

if TYPE_CHECKING:
    import torch

    from engine.results.state import OptimizerState

Groups: TypeAlias = "Sequence[Mapping[str, torch.nn.Parameter]]"
"""Float32 parameters by name, in groups that each have their own learning rate."""
Total: TypeAlias = "Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]"
"""Adds up values of all parameters of the training, those of other processes included: `Gradients.total`."""


class Optimizer(Protocol):
    """An optimizer over the named parameters of one training.

    A row's module has a function `make(groups: Groups, args: TrainArgs, *, is_whole_model: bool, total: Total) ->
    Optimizer`. Groups may be empty: with several processes each has an optimizer of a part of a whole model
    (`is_whole_model`). What parameters know of each other goes through `total`, and an update of a whole model must not
    need a copy of it.
    """

    def begin(self) -> None:
        """Allocate the state of a whole model, unless it was restored. Called before a step has gradients.

        Allocated after the first gradients, it would lie behind them, and what they leave would be a gap in the heap.
        """
        ...

    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """Make one update of all parameters that have a gradient, and leave the others as they are.

        All processes of the training call it equally often, and with the same rates.

        Args:
            gradients: float32 gradients, by name. A parameter that the loss does not depend on may have none.
            rates: the learning rate of each group.

        Raises:
            NonFiniteError: a rate is too high for float32; nothing was changed.
        """
        ...

    def state(self) -> OptimizerState:
        """Return the state, with the tensors of the row's layout for every parameter.

        The tensors are on their parameter's device and are no copies: they change with the next update.
        """
        ...

    def restore(self, state: OptimizerState) -> None:
        """Continue from a saved state. The next updates have the same bits as without the restart.

        Its tensors are taken over where they are on their parameter's device: use them for nothing else.

        Raises:
            CheckpointError: the state is for other parameters, or has values that no update can produce.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """The row of an optimizer: what is known of it without importing torch."""

    module: str
    """The full name of the module that has `make`."""
    layout: Layout
    """Returns the slots of a parameter; their tensors are called `<slot>.<parameter>` in `state.safetensors`."""
    reads: tuple[str, ...] = ()
    """The keys of `train_args` that not every optimizer reads, with dots: `adam_args.beta1`."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """Usual values of such keys that differ from the task's defaults."""
    rate_factor: float = 1.0
    """The usual learning rate, as a multiple of that of the default optimizer."""
    lighter: OptimizerName | None = None
    """An optimizer whose state takes less memory, with the same usual rates and constants."""
    finds_rate: bool = False
    """True if it finds the learning rate itself, and multiplies it by the task's, which then is usually 1."""
