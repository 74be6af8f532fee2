"""Start a training: load the base model, attach what is trained, and restore the state to continue from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.core.console import NOTE, say
from engine.job.context import RunContext
from engine.job.job import Job
from engine.models import registry
from engine.models.family import PRECISIONS, Family, LoadArgs
from engine.results import held_out_rows, provenance
from engine.results import history as history_file
from engine.results.checkpoint import Checkpoint
from engine.results.history import StepReport
from engine.results.output import saved_progress
from engine.results.output.saved_progress import SavedProgress
from engine.results.output.step_results import SavedState, StepResults
from engine.results.state import DamagedStateError, TrainState, read_state
from engine.training.assembly import assemble
from engine.training.distributed.shared_file import open_shared
from engine.training.gradients.shares import owned_by
from engine.training.methods import registry as methods
from engine.training.methods.method import Trainable
from engine.training.methods.warm_start import WarmStart
from engine.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Training:
    """The objects that are in memory while a job trains."""

    family: Family
    trainable: Trainable
    trainer: Trainer
    history: list[StepReport]
    step_results: StepResults
    held_out_losses: list[held_out_rows.Row] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)
    """The devices and versions that trained this task's steps (`provenance.extended_origins`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The state that a training starts or continues from."""

    state: TrainState | None = None
    saved_state: SavedState | None = None
    """The state's files, if it is that of the saved progress."""
    history: list[StepReport] = field(default_factory=list)
    held_out_losses: list[held_out_rows.Row] = field(default_factory=list)
    step_hashes: Mapping[str, str] = field(default_factory=dict)
    origins: list[dict[str, Any]] = field(default_factory=list)


def load_family(job: Job, device: torch.device, require_unchanged: Callable[[], None], *, offload: bool) -> Family:
    """Load the job's base model, or prepare to load its parts when they are needed.

    Args:
        job: the job.
        device: the denoiser's device.
        require_unchanged: called after a part was loaded; raises ModelError if its files are not those of the job.
        offload: whether the denoiser's blocks stay in main memory.

    Raises:
        ModelError: the model is incomplete or of the wrong kind.
    """
    quantization = job.task.model.quantization
    return registry.load(
        job.base.family,
        LoadArgs(
            folder=job.base.folder,
            single_file=job.base.single_file,
            variants=job.base.variants,
            absent=job.base.absent,
            elsewhere=job.base.places,
            dtype=PRECISIONS[job.task.mixed_precision],
            float32=frozenset(job.method.trained_weights(job.base.family, job.task)),
            quantised={job.base.family.denoiser: quantization} if quantization else {},
            offloaded={job.base.family.denoiser: job.base.family.block_lists} if offload else {},
            device=device,
            prediction_type=job.prediction_type,
            zero_terminal_snr=job.task.train_args.zero_terminal_snr,
            caption_tokens=job.caption_tokens,
            flow_shift=job.task.train_args.flow_shift,
            frame_rate=job.task.dataset.frame_rate,
            require_unchanged=require_unchanged,
            guidance_scale=job.task.train_args.guidance_scale,
        ),
    )


def find_beginning(context: RunContext) -> Beginning:
    """Return the saved progress, or the state in the checkpoint to continue, if there is any.

    Raises:
        CheckpointError: the checkpoint's state is malformed.
    """
    return _saved(context) or _parents(context)


def start_training(context: RunContext, family: Family, beginning: Beginning) -> Training:
    """Attach what is trained, and restore the state to continue from, or given weights, if there are any.

    Raises:
        TaskError: the task's targets match no module, or a module that cannot be adapted.
        CheckpointError: what is to be continued does not fit.
    """
    job, outcome = context.job, context.outcome
    trainable = methods.attach(
        family,
        job.task,
        context.device,
        start=beginning.state.start if beginning.state else None,
        warm_start=job.parent if isinstance(job.parent, WarmStart) and not beginning.state else None,
    )
    trainer = assemble(job.task, job.step_range, family, trainable, context.device, processes=context.processes)
    if beginning.state:
        trainer.restore(beginning.state)
    outcome.global_step = outcome.resumed_from_step = trainer.step
    step_results = StepResults(context.output, beginning.step_hashes, beginning.saved_state)
    if context.processes.is_first:
        step_results.delete_unnamed()  # what a job wrote that was killed while it saved: the next save needs the space
    if trainer.step > job.step_range.start_step:
        say(f"continuing at step {trainer.step}, where this task was interrupted")
    return Training(
        family=family,
        trainable=trainable,
        trainer=trainer,
        history=beginning.history,
        step_results=step_results,
        held_out_losses=beginning.held_out_losses,
        origins=_extended_origins(beginning.origins, trainer.step, context),
    )


def _extended_origins(origins: list[dict[str, Any]], step: int, context: RunContext) -> list[dict[str, Any]]:
    """Add this run's device and versions, and print a note if earlier steps were trained with others."""
    found = provenance.extended_origins(origins, step, context.job.origin(context.device))
    if len(found) > max(1, len(origins)):
        say(
            f"{NOTE}the steps before were trained on another device or with other library versions, so neither "
            "environment alone reproduces the result; its lineage says which steps were trained where"
        )
    return found


def _saved(context: RunContext) -> Beginning | None:
    """Return the progress saved in the output folder, as the first process finds it; None if there is none."""
    processes, output = context.processes, context.output
    header = processes.broadcast(lambda: saved_progress.read(output, context.job.record, say))
    if header is None:
        return None
    saved = SavedProgress.parse(header)
    files = {name: output.stored(digest) for name, digest in saved.state.files.items()}
    try:
        state = read_state(files, saved.state.scalars, lambda path: open_shared(processes, path), _owned(context))
    except DamagedStateError as error:
        say(f"{error}: this task starts over")
        return None
    context.outcome.before = saved.so_far
    return Beginning(
        state=state,
        saved_state=saved.state,
        history=saved.history,
        held_out_losses=saved.held_out_losses,
        step_hashes=saved.step_hashes,
        origins=saved.origins,
    )


def _owned(context: RunContext) -> Callable[[Mapping[str, int]], set[str]] | None:
    """Return what `read_state` takes as `owned`: all processes have all of a state, but for that of a whole model."""
    place = context.processes
    if not context.job.method.is_whole_model or place.world_size == 1:
        return None
    return lambda sizes: owned_by(place.rank, sizes, place.world_size)


def _parents(context: RunContext) -> Beginning:
    """Return the state in the checkpoint to continue; an empty one if the task starts a training."""
    parent = context.job.parent
    if not isinstance(parent, Checkpoint):
        return Beginning()
    return Beginning(
        state=read_state(parent.state_files, parent.state_scalars, owned=_owned(context)),
        history=history_file.parse(parent.history),
        held_out_losses=held_out_rows.parse(parent.held_out_losses),
    )
