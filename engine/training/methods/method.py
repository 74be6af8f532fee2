"""What a training method offers: what is trained of a base model, and what becomes of it. No torch until it trains."""

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
"""The task's keys that change, with their new values as they are written, and the task with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the published files tell of a training."""

    base: BaseModel
    prediction_type: PredictionType
    resolution: int
    """In pixels."""
    global_step: int


class Trainable(Protocol):
    """What is trained of a base model that is in memory.

    A row's module has a function `attach(family: Family, task: Task, device: torch.device, *, start: Tensors | None,
    warm_start: WarmStart | None) -> Trainable`. It freezes the base model and adds to it, or releases of it, what is
    trained. `start` is `Trainable.start` of the training that is continued, None for one that begins. It raises
    TaskError where the task asks for what the base model does not have, and CheckpointError where `start` or
    `warm_start` does not fit.
    """

    @property
    def parameters(self) -> Parameters:
        """All that is trained: float32, sorted by name, on the device."""
        ...

    @property
    def groups(self) -> Sequence[Parameters]:
        """The same by learning rate: the denoiser's; then, where they are trained, the text encoders'."""
        ...

    @property
    def start(self) -> Tensors:
        """What a continued training needs of its start besides the parameters: float32, on the CPU; often empty."""
        ...

    def state(self) -> Tensors:
        """Return a copy of the parameters: float32, on the CPU."""
        ...

    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the parameters with those of another `state`.

        Raises:
            CheckpointError: not exactly the same names and shapes.
        """
        ...

    def step(self) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """Return the context of a step's micro-batches, with what to take gradients of, in the order of the parameters.

        The parameters do not change inside of it. The gradients are of one dtype.
        """
        ...

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass.

        Args:
            address: the number of its first visit, by which all that is drawn in it is addressed.
        """
        ...

    def baseline(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes as it would without the training."""
        ...

    def require_finite(self, step: int) -> None:
        """Check the weights as they would be published after a step.

        Raises:
            NonFiniteError: a value is not finite.
        """
        ...

    def export(self, about: About) -> dict[str, bytes]:
        """Return the files to publish in `checkpoint/`: those that the row names, all of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A method's row: what is known of it without importing torch."""

    module: str
    """The full name of the module that has `attach`."""
    files: Mapping[str, str]
    """The files that it publishes in `checkpoint/`, the main one first, each with what its name ends in where it is of
    an earlier step: `steps/000100<ending>`."""
    invariants: Callable[[FamilySpec, Task], dict[str, Any]]
    """What all tasks of a chain must agree on, of the method's own task keys."""
    find_start: Callable[[Path, Set[str]], tuple[str, str | None]]
    """Finds the weights to start from in a folder, of which it is told the names of all files: the weights' file, and
    one that describes it, if any. Raises CheckpointError where there are none."""
    check: Callable[[BaseModel, Task, WarmStart | None], list[str]]
    """Checks a task against the base model's configurations and the headers of its weights, before anything is loaded;
    returns lines on what could not be checked. Raises what `attach` would."""
    notes: Callable[[Task, WarmStart | None], list[str]]
    """Returns what is allowed but likely a mistake in the method's own keys and the weights to start from."""
    tapes: Callable[[FamilySpec, Task, int, int], tuple[Tape, Tape]]
    """Returns the tapes that record the memory of a training step, the denoiser's and the text encoders', for values
    and norms of so many bytes."""
    smaller: Callable[[Task], Iterator[Change]]
    """Yields the task with less and less to train, for one that does not fit into memory."""
    copies: Callable[[Task], int]
    """The values that the saved state holds of each trained one, besides the optimizer's."""

    @property
    def main_file(self) -> str:
        """The file that a training can start from."""
        return next(iter(self.files))

    def step_files(self, step: int, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return exported files by their names as those of an earlier step."""
        return {step_file(step, self.files[name]): data for name, data in files.items()}
