"""What an optimizer offers to the training, and its row in the registry. No torch until a training begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

    from engine.results.state import OptimizerState

Groups: TypeAlias = "Sequence[Mapping[str, torch.nn.Parameter]]"
"""Float32 parameters by name, in groups that each have a learning rate of their own."""


class Optimizer(Protocol):
    """An optimizer over the named parameters of one training.

    A row's module has a function `make(groups: Groups, args: TrainArgs) -> Optimizer`.
    """

    def update(self, gradients: Mapping[str, torch.Tensor], rates: Sequence[float]) -> None:
        """Make one update of all parameters.

        Args:
            gradients: float32, by parameter name, of the parameters' shapes.
            rates: the groups' learning rates.

        Raises:
            NonFiniteError: a rate is too high for float32; nothing has changed.
        """
        ...

    def state(self) -> OptimizerState:
        """Return a copy of the state, on the CPU: every slot that the row names, with every parameter's tensor."""
        ...

    def restore(self, state: OptimizerState) -> None:
        """Continue from a saved state, which is copied: the next updates have the bits that they would have had.

        Raises:
            CheckpointError: the state is not one of these parameters, or holds what no update makes.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer's row: what is known of it without importing torch."""

    module: str
    """The full name of the module that has `make`."""
    slots: tuple[str, ...]
    """What it remembers of each parameter: names in `state.safetensors`, `<slot>.<parameter>`. Each slot holds as many
    float32 values as there are trained ones."""
    reads: tuple[str, ...] = ()
    """The keys of `train_args` that it alone reads."""
