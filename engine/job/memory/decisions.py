"""Decide by the prediction how a task is run: what is recomputed, and what is freed. No torch."""

from __future__ import annotations

from typing import Any

from engine.job.memory.phases import Phases
from engine.job.memory.prediction import SPARE, Prediction, predict
from engine.models.base_model import BaseModel
from engine.task.task import Task
from engine.training.methods.registry import METHODS


def parts_apart(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> bool:
    """Return whether the text encoders that cannot be trained are freed before the denoiser is loaded.

    The result's bits are the same. It costs time: captions that were not encoded ahead need the encoders again. So it
    is done only where some phase does not fit otherwise, and takes less memory then.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown, and no reason to do it.
        main_available: bytes of main memory of a machine with a GPU; None is unknown. Without effect on a CPU.
        num_processes: see `predict`.
    """
    recompute = task.train_args.gradient_checkpointing is True
    kept, freed = (
        predict(base, task, recompute=recompute, device=device, num_processes=num_processes, apart=apart)
        for apart in (False, True)
    )
    if kept is None or freed is None or not freed.apart:
        return False
    memories = [(kept, freed, available), (kept.main, freed.main, main_available if device == "cuda" else None)]
    return any(
        before > SPARE * limit and after < before
        for kept_one, freed_one, limit in memories
        if limit is not None
        for before, after in zip(_each(kept_one), _each(freed_one), strict=True)
    )


def _each(phases: Phases) -> tuple[int, int, int, int]:
    return phases.encode, phases.load, phases.train, phases.validation


def wants_recompute(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> bool:
    """Return whether to train with gradient checkpointing: as the task says, or if it would not fit without.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown.
        main_available: see `parts_apart`.
        num_processes: see `predict`.
    """
    asked = task.train_args.gradient_checkpointing
    if asked != "auto":
        return bool(asked)
    if wants_offload(
        base, task, device=device, available=available, main_available=main_available, num_processes=num_processes
    ):
        return True
    apart = parts_apart(
        base, task, device=device, available=available, main_available=main_available, num_processes=num_processes
    )
    plain = predict(base, task, recompute=False, device=device, num_processes=num_processes, apart=apart)
    # The bits are the same, so where the memory is unknown, gradient checkpointing costs only time.
    return plain is None or available is None or plain.train > SPARE * available


def keeps_encoders(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> bool:
    """Return whether the encoders stay on the device while the first steps are trained, so that these start early.

    The result's bits are the same. On a CPU they do unless they are freed: both are in main memory.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown, and on a GPU a reason not to do it.
        main_available: see `parts_apart`.
        num_processes: see `predict`.
    """
    place: dict[str, Any] = {"device": device, "available": available, "num_processes": num_processes}
    if device == "cpu":
        return not parts_apart(base, task, **place)
    found = chosen(base, task, main_available=main_available, **place)
    if found is None or available is None or found.apart or found.offload:
        return False
    return beside_encoders(found) <= SPARE * available


def beside_encoders(found: Prediction) -> int:
    """Return the bytes at the peak of training on a GPU with the encoders there, too; `found` is without offload."""
    return found.train + found.main.train  # which are the encoders' weights, as far as they are not trained


def may_offload(task: Task) -> bool:
    """Return whether it is left to the memory where the denoiser's blocks are, as far as the task alone says."""
    args = task.train_args
    return (
        args.offload == "auto"
        and args.gradient_checkpointing is not False
        and METHODS[task.training_type].needs_original_weights(task) is None
    )


def wants_offload(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> bool:
    """Return whether the denoiser's blocks stay in main memory: as the task says, or if it would not fit otherwise.

    The result's bits are the same, but it takes time. Gradient checkpointing then computes each block again.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown, and no reason to do it.
        main_available: see `parts_apart`; no reason against it.
        num_processes: see `predict`.
    """
    if task.train_args.offload is True:
        return True
    if device != "cuda" or available is None or not may_offload(task):
        return False
    place: dict[str, Any] = {"device": device, "num_processes": num_processes}
    apart = parts_apart(base, task, available=available, main_available=main_available, **place)
    whole, moved = (
        predict(base, task, recompute=True, apart=apart, offload=offload, **place) for offload in (False, True)
    )
    return whole is not None and moved is not None and whole.peak > SPARE * available and moved.peak < whole.peak


def chosen(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> Prediction | None:
    """Predict what a task takes as it will be run: see `wants_recompute`, `parts_apart` and `wants_offload`."""
    place: dict[str, Any] = {"device": device, "available": available, "num_processes": num_processes}
    return predict(
        base,
        task,
        recompute=wants_recompute(base, task, main_available=main_available, **place),
        device=device,
        num_processes=num_processes,
        apart=parts_apart(base, task, main_available=main_available, **place),
        offload=wants_offload(base, task, main_available=main_available, **place),
    )
