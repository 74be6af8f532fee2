"""Decide by the prediction how a task is run: what is freed, recomputed and kept in main memory. No torch.

No result depends on it. What costs least time comes first, and more is done only where the task does not fit
otherwise: text encoders are freed, activations recomputed, the blocks' inputs kept in main memory, and their weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.job.memory.machine import Machine
from engine.job.memory.phases import Phases
from engine.job.memory.prediction import SPARE, Offload, Prediction, predict
from engine.models.base_model import BaseModel
from engine.task.task import Task
from engine.training.methods.registry import METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The measures by which a job takes less memory."""

    apart: bool = False
    """True if the text encoders that cannot be trained are freed before the denoiser is loaded. It costs time: captions
    that were not encoded ahead need the encoders again."""
    recompute: bool
    """True if it trains with gradient checkpointing."""
    offload: Offload = Offload.NOTHING
    """The parts of the denoiser's blocks that are in main memory; needs gradient checkpointing."""


def decide(base: BaseModel, task: Task, machine: Machine) -> Decision:
    """Return what the job does: as the task says, or what it needs to fit.

    Free memory that is unknown is no reason to free or to offload anything. Activations are recomputed then.
    """
    apart = _frees_encoders(base, task, machine)
    offload = _offload(base, task, machine, apart=apart)
    recompute = offload > Offload.NOTHING or _recomputes(base, task, machine, apart=apart)
    return Decision(apart=apart, recompute=recompute, offload=offload)


def chosen(base: BaseModel, task: Task, machine: Machine) -> Prediction | None:
    """Predict what a task takes as `decide` lets it run."""
    return predicted(base, task, machine, decide(base, task, machine))


def predicted(base: BaseModel, task: Task, machine: Machine, decision: Decision) -> Prediction | None:
    """Predict what a task takes with some measures, on a machine of this kind; see `predict`."""
    return predict(
        base,
        task,
        recompute=decision.recompute,
        device=machine.device,
        num_processes=machine.num_processes,
        apart=decision.apart,
        offload=decision.offload,
    )


def keeps_encoders(base: BaseModel, task: Task, machine: Machine) -> bool:
    """Return whether the encoders stay on the device while the first steps are trained, so that these start early.

    On a GPU they do where its free memory is known and has room for them. On a CPU, where encoders and denoiser are in
    one memory, they do unless they are freed.
    """
    if machine.device == "cpu":
        return not decide(base, task, machine).apart
    found = chosen(base, task, machine)
    if found is None or machine.available is None or found.apart or found.offload:
        return False
    return beside_encoders(found) <= SPARE * machine.available


def beside_encoders(found: Prediction) -> int:
    """Return the bytes at the peak of training on a GPU with the encoders there, too; `found` is without offload."""
    return found.train + found.main.train  # which are the encoders' weights, as far as they are not trained


def offload_levels(base: BaseModel, task: Task) -> tuple[Offload, ...]:
    """Return what may be offloaded if the memory is too small, as far as task and base model say."""
    args = task.train_args
    if args.offload != "auto" or args.gradient_checkpointing is False or not base.family.block_lists:
        return ()
    has_frozen = METHODS[task.training_type].needs_original_weights(task) is None
    return (Offload.INPUTS, Offload.BLOCKS) if has_frozen else (Offload.INPUTS,)


def _frees_encoders(base: BaseModel, task: Task, machine: Machine) -> bool:
    recompute = task.train_args.gradient_checkpointing is True
    kept, freed = (
        predicted(base, task, machine, Decision(recompute=recompute, apart=apart)) for apart in (False, True)
    )
    if kept is None or freed is None or not freed.apart:
        return False
    main_available = machine.main_available if machine.device == "cuda" else None
    return _helps(kept, freed, machine.available) or _helps(kept.main, freed.main, main_available)


def _helps(before: Phases, after: Phases, available: int | None) -> bool:
    """Return whether some phase does not fit before, and takes less after."""
    if available is None:
        return False
    phases = zip(_each(before), _each(after), strict=True)
    return any(one > SPARE * available and other < one for one, other in phases)


def _each(phases: Phases) -> tuple[int, int, int, int]:
    return phases.encode, phases.load, phases.train, phases.validation


def _offload(base: BaseModel, task: Task, machine: Machine, *, apart: bool) -> Offload:
    if task.train_args.offload is True:
        return Offload.BLOCKS
    found = Offload.NOTHING
    if machine.device != "cuda" or machine.available is None:
        return found
    now: Prediction | None = None
    for level in (found, *offload_levels(base, task)):
        then = predicted(base, task, machine, Decision(recompute=True, apart=apart, offload=level))
        if then is None:
            break
        if now is None or _helps(now, then, machine.available):
            found, now = level, then
    return found


def _recomputes(base: BaseModel, task: Task, machine: Machine, *, apart: bool) -> bool:
    asked = task.train_args.gradient_checkpointing
    if asked != "auto":
        return bool(asked)
    plain = predicted(base, task, machine, Decision(recompute=False, apart=apart))
    return plain is None or machine.available is None or plain.train > SPARE * machine.available
