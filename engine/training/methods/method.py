"""The interface of a training method: what it trains of a base model, and how it exports that. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from engine.models.base_model import BaseModel
from engine.models.parts.tape import Tape
from engine.models.spec import FamilySpec
from engine.results.checkpoint import step_file
from engine.task.task import PredictionType, Task
from engine.training.methods.warm_start import WarmStart

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"
Parameters: TypeAlias = "Mapping[str, torch.nn.Parameter]"


Change = tuple[dict[str, str], Task]
"""The changed task keys with their new values as text, and the changed task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Facts about a training for the metadata of published files."""

    base: BaseModel
    prediction_type: PredictionType
    resolution: int
    """The resolution in pixels."""
    global_step: int


class Trainable(Protocol):
    """The trained part of a base model in memory.

    A row's module has a function `attach(family: Family, task: Task, device: torch.device, *, start: Tensors | None,
    warm_start: WarmStart | None) -> Trainable`. It freezes the base model, and adds or unfreezes the parameters to
    train. `start` is `Trainable.start` of the training that is continued, None for a new one. It raises TaskError if
    the task asks for something that the base model does not have, and CheckpointError if `start` or `warm_start` does
    not fit.
    """

    @property
    def parameters(self) -> Parameters:
        """All trained parameters: float32, sorted by name, on the device."""
        ...

    @property
    def groups(self) -> Sequence[Parameters]:
        """The parameters by learning rate: the denoiser's, then the text encoders' if they are trained."""
        ...

    @property
    def start(self) -> Tensors:
        """Values of the training's start that a continuation needs: float32, on the CPU; often empty."""
        ...

    def state(self) -> Tensors:
        """Return the parameters without gradients. They are no copies: they change with the next update."""
        ...

    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the parameters with another `state`.

        Raises:
            CheckpointError: names or shapes differ.
        """
        ...

    def step(self) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """Return the context of a step's micro-batches. It gives the tensors to take gradients of, like `parameters`.

        They are in the order of the parameters, which do not change inside, and their gradients have one dtype.
        """
        ...

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass.

        Args:
            address: the number of its first visit, which addresses everything random in it.
        """
        ...

    def baseline(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes as without the training."""
        ...

    def require_finite(self, step: int) -> None:
        """Check the weights after a step, in the form in which they would be published.

        Raises:
            NonFiniteError: a value is not finite.
        """
        ...

    def export(self, about: About) -> dict[str, bytes]:
        """Return the files to publish in `checkpoint/`: exactly those that the row names."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """The row of a method: what is known of it without importing torch."""

    module: str
    """The full name of the module that has `attach`."""
    files: Mapping[str, str]
    """The files that it publishes in `checkpoint/`, the main one first, each with the ending of its name for an earlier
    step: `steps/000100<ending>`."""
    invariants: Callable[[FamilySpec, Task], dict[str, Any]]
    """Returns the invariants of a chain that come from the method's own task keys."""
    find_start: Callable[[Path, Set[str]], tuple[str, str | None]]
    """Finds the weights to start from in a folder with these file names. Returns the name of the weights' file, and of
    one that describes it, if any. Raises CheckpointError if there are none."""
    check: Callable[[BaseModel, Task, WarmStart | None], list[str]]
    """Checks a task against the base model's configurations and the headers of its weights, before anything is loaded.
    Returns lines on what could not be checked. Raises the errors of `attach`."""
    notes: Callable[[Task, WarmStart | None], list[str]]
    """Returns notes on likely mistakes in the method's own keys and the weights to start from."""
    tapes: Callable[[FamilySpec, Task, int, int], tuple[Tape, Tape]]
    """Returns the tapes that record the memory of a training step for the denoiser and for the text encoders. The
    numbers are the bytes of a value, and of a value in normalisation layers."""
    smaller: Callable[[Task], Iterator[Change]]
    """Yields changes of the task with less and less to train, for one that does not fit into memory."""
    copies: Callable[[Task], int]
    """Returns the number of values per trained value in the saved state, without the optimizer's."""

    @property
    def main_file(self) -> str:
        """The file from which a training can start."""
        return next(iter(self.files))

    def step_files(self, step: int, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return exported files under their names for an earlier step."""
        return {step_file(step, self.files[name]): data for name, data in files.items()}
