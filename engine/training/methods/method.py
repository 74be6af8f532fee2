"""The interface of a training method: what it trains of a base model, and how it exports that. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from engine.core.files import atomic_files
from engine.models.base_model import BaseModel
from engine.models.objectives.objective import TargetType
from engine.models.parts.tape import Tape
from engine.models.spec import FamilySpec
from engine.results.report.words import Words
from engine.task.task import Task, TrainingType
from engine.training.methods.distances import Distances
from engine.training.methods.warm_start import WarmStart

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"
Parameters: TypeAlias = "Mapping[str, torch.nn.Parameter]"
Pieces: TypeAlias = atomic_files.Pieces


Change = tuple[dict[str, str], Task]
"""The changed task keys with their new values as text, and the changed task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Facts about a training for the metadata of published files and the model card."""

    base: BaseModel
    prediction_type: TargetType
    task: Task
    global_step: int
    max_steps: int
    """The steps of the whole training."""
    micro_batches: int
    """The micro-batches of a step: processes x gradient accumulation."""
    num_images: int
    """The visits of an epoch: a repeated image counts that often."""
    count_tags: Callable[[], Mapping[str, Mapping[str, int]]]
    """Returns how many captions have each tag, by group of images (`engine.data.tag_counts`)."""


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
    def is_whole_model(self) -> bool:
        """True if so much is trained that each process keeps only a share of the optimizer's state.

        Gradients are then summed tensor by tensor as they appear, and each tensor has one owner among the processes.
        """
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

    def refresh(self) -> None:
        """Bring what the layers compute with up to date. Called after the parameters have changed."""
        ...

    def micro_batch(self, address: int) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass.

        Args:
            address: the number of its first visit, which addresses everything random in it.
        """
        ...

    def baseline(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes as without the training.

        Raises:
            ModelError: the base model's weights are read again, and cannot be.
        """
        ...

    def require_finite(self, step: int) -> None:
        """Check the weights after a step, in the form in which they would be published.

        Raises:
            NonFiniteError: a value is not finite.
        """
        ...

    def export(self, about: About) -> Mapping[str, bytes | Pieces]:
        """Return the files to publish in `checkpoint/`, by names that may have one folder: those that the row knows.

        Pieces are to be used before the parameters change.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """The row of a method: what is known of it without importing torch."""

    module: str
    """The full name of the module that has `attach`."""
    words: Words
    """The words for what it trains, in messages and reports."""
    reads: Collection[str]
    """The keys of a task that only this method reads."""
    usual_rate: float | None
    """The learning rate that is usual for this method at four images a step; a much higher one gets a note. None if
    none is too high in general."""
    main_file: str
    """The file, or the folder, from which a training can start, in messages."""
    step_ending: Callable[[str], str | None]
    """Returns what the name of a published file becomes for an earlier step: `steps/000100<ending>`. Returns None for a
    name that the method does not publish."""
    is_step_ending: Callable[[str], bool]
    """Returns whether `step_ending` can return this."""
    is_complete: Callable[[Set[str]], bool]
    """Returns whether the names of a checkpoint's files have all weights that the method publishes."""
    is_in: Callable[[Path], bool]
    """Returns whether a folder has weights that the method publishes, with or without a manifest. Raises
    CheckpointError if it has them, and they are malformed."""
    distances: Callable[[Path, Path], Distances]
    """Returns how far apart the published weights in two folders are, for which `is_in` is true. Raises CheckpointError
    if they are malformed, or of different base models."""
    published: str | None
    """The full name of the module that reads them to export them (see `published.Published`); None if they cannot be
    exported."""
    invariants: Callable[[FamilySpec, Task], dict[str, Any]]
    """Returns the invariants of a chain that come from the method's own task keys."""
    trained_weights: Callable[[FamilySpec, Task], Collection[str]]
    """Returns the components of the base model whose own weights are trained, and therefore loaded in float32."""
    find_start: Callable[[Path, Set[str]], Sequence[str]]
    """Finds the weights to start from in a folder with these entries. Returns the names of the files that are read, the
    main one first. Raises CheckpointError if there are none."""
    check: Callable[[BaseModel, Task, WarmStart | None], list[str]]
    """Checks a task against the base model's configurations and the headers of its weights, before anything is loaded.
    Returns lines on what could not be checked. Raises the errors of `attach`."""
    notes: Callable[[Task, WarmStart | None], list[str]]
    """Returns notes on likely mistakes in the method's own keys and the weights to start from."""
    needs_original_weights: Callable[[Task], str | None]
    """Returns why a task needs the base model's weights themselves in memory, and what to do if they are to be
    quantised or offloaded (`model.quantization`, `train_args.offload`); None if it does not need them."""
    is_whole_model: bool
    """True if the trained values are the base model's own weights; see `Trainable.is_whole_model`. For the prediction
    of memory."""
    tapes: Callable[[FamilySpec, Task, int, int], tuple[Tape, Tape]]
    """Returns the tapes that record the memory of a training step for the denoiser and for the text encoders. The
    numbers are the bytes of a value, and of a value in normalisation layers."""
    smaller: Callable[[Task], Iterator[Change]]
    """Yields changes of the task with less and less to train, for one that does not fit into memory."""
    lighter: TrainingType | None
    """The method that takes less memory with the same base model, to be proposed where nothing else fits."""
    copies: Callable[[Task], int]
    """Returns the number of values per trained value in the saved state, without the optimizer's and the average."""
    published_bytes: Callable[[Task], int]
    """Returns the bytes of a trained value in the files that the method publishes, all together."""
    hub_tags: tuple[str, ...]
    """The tags of what the method publishes, for the model card."""
    relation: str
    """The relation to the base model, in the Hub's words: `adapter` or `finetune`."""
    usage: Callable[[About, Mapping[str, Any]], str]
    """Returns the model card's section on how to use the published files, in Markdown. The mapping describes a
    validation image as `prompts.json` does."""
