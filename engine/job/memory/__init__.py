"""Predict how much memory a job takes, find out how much there is, and advise on what would fit. No torch."""

from __future__ import annotations

from typing import Any, Final

from engine.job.memory.advice import advise, fitting, require_enough
from engine.job.memory.decisions import (
    beside_encoders,
    chosen,
    keeps_encoders,
    may_offload,
    parts_apart,
    wants_offload,
    wants_recompute,
)
from engine.job.memory.machine import PROGRAM_BYTES, available_bytes, most_bytes
from engine.job.memory.phases import Phases
from engine.job.memory.prediction import SPARE, Prediction, gib, predict
from engine.models.base_model import BaseModel
from engine.task.task import Task

__all__ = [
    "PROGRAM_BYTES",
    "SPARE",
    "advise",
    "available_bytes",
    "describe",
    "fitting",
    "gib",
    "keeps_encoders",
    "most_bytes",
    "parts_apart",
    "predict",
    "require_enough",
    "wants_offload",
    "wants_recompute",
]


_INDENT: Final = " " * 15


def describe(
    base: BaseModel,
    task: Task,
    *,
    device: str,
    available: int | None,
    main_available: int | None = None,
    num_processes: int = 1,
) -> list[str]:
    """Return lines for a person with the prediction; with several processes, for one of them.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes of memory on that device; None is unknown.
        main_available: see `parts_apart`.
        num_processes: see `predict`.
    """
    place: dict[str, Any] = {"device": device, "available": available, "num_processes": num_processes}
    found = chosen(base, task, main_available=main_available, **place)
    if found is None:
        return ["memory         not predicted: the base model's configurations do not say how large it is"]
    asked = task.train_args.gradient_checkpointing
    kind = "on the GPU, plus about 0.5 GiB for CUDA" if device == "cuda" else "on this machine, plus the program itself"
    if asked == "auto" and available is None and not found.offload:
        plain = predict(base, task, recompute=False, device=device, num_processes=num_processes, apart=found.apart)
        assert plain is not None, "the same configurations were predicted with gradient checkpointing"
        lines = [
            f"memory         {_phases(plain)} {kind}",
            f"{_INDENT}with gradient checkpointing (if less than {gib(int(plain.train / SPARE))} is free): "
            f"{gib(found.train)} training",
        ]
    else:
        why = "" if asked != "auto" or available is None else f" (auto: {gib(available)} available)"
        with_it = "with" if found.recompute else "without"
        lines = [f"memory         {_phases(found)} {kind}; {with_it} gradient checkpointing{why}"]
    if device == "cuda":
        lines.append(f"{_INDENT}main memory, plus the program itself: {_phases(found.main)}")
    if device == "cuda" and keeps_encoders(base, task, main_available=main_available, **place):
        with_them = gib(beside_encoders(found))
        lines.append(f"{_INDENT}the encoders leave the GPU after the first steps, until then {with_them} training")
    else:
        freed = predict(base, task, recompute=found.recompute, device=device, num_processes=num_processes, apart=True)
        lines += _encoders(found, freed, is_open=device == "cuda" and available is None)
    lines += _blocks(base, task, found, is_open=device == "cuda" and available is None, num_processes=num_processes)
    if available is not None and found.peak > available:
        fits = "; ".join(fitting(base, task, device=device, available=available, num_processes=num_processes))
        lines.append(
            f"note: that is more than the {gib(available)} available" + (f"; what should fit: {fits}" if fits else "")
        )
    return lines


def _encoders(found: Prediction, freed: Prediction | None, *, is_open: bool) -> list[str]:
    """Return a line on how the text encoders are held, where they may be freed before the denoiser is loaded.

    Args:
        found: the task's prediction.
        freed: the same with the text encoders freed.
        is_open: whether it is decided when the job starts, since the GPU's memory is not known yet.
    """
    if freed is None or not freed.apart:
        return []
    if found.apart:
        return [f"{_INDENT}text encoders that are not needed in training are freed before the denoiser is loaded"]
    if is_open:
        limit = gib(int(max(found.encode, found.validation) / SPARE))
        return [
            f"{_INDENT}with text encoders freed before the denoiser is loaded (if less than {limit} is free): "
            f"{gib(freed.encode)} encoding, {gib(freed.validation)} validation"
        ]
    return [f"{_INDENT}the text encoders stay in main memory while it trains"]


def _blocks(base: BaseModel, task: Task, found: Prediction, *, is_open: bool, num_processes: int) -> list[str]:
    """Return a line on the denoiser's blocks, where they stay in main memory or may do so; see `_encoders`."""
    if found.offload:
        return [f"{_INDENT}the denoiser's blocks stay in main memory until they compute"]
    if not is_open or not may_offload(task):
        return []
    place: dict[str, Any] = {"device": "cuda", "num_processes": num_processes, "recompute": True, "apart": True}
    whole, moved = (predict(base, task, offload=offload, **place) for offload in (False, True))
    if whole is None or moved is None or moved.peak >= whole.peak:
        return []
    return [
        f"{_INDENT}with the denoiser's blocks in main memory (if less than {gib(int(whole.peak / SPARE))} is free): "
        f"{_phases(moved)}; main memory {gib(moved.main.peak)}"
    ]


def _phases(found: Phases) -> str:
    return f"{gib(found.encode)} encoding, {gib(found.train)} training, {gib(found.validation)} validation"
