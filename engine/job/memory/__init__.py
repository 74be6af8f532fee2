"""Predict how much memory a job takes, find out how much there is, and advise on what would fit. No torch."""

from __future__ import annotations

from typing import Final

from engine.job.memory.advice import advise, fitting, require_enough
from engine.job.memory.decisions import (
    Decision,
    beside_encoders,
    chosen,
    decide,
    keeps_encoders,
    offload_levels,
    predicted,
)
from engine.job.memory.machine import PROGRAM_BYTES, Machine, available_bytes, most_bytes
from engine.job.memory.phases import Phases
from engine.job.memory.prediction import SPARE, Offload, Prediction, gib, predict
from engine.models.base_model import BaseModel
from engine.task.task import Task

__all__ = [
    "PROGRAM_BYTES",
    "SPARE",
    "Machine",
    "Offload",
    "advise",
    "available_bytes",
    "decide",
    "describe",
    "fitting",
    "gib",
    "keeps_encoders",
    "most_bytes",
    "predict",
    "require_enough",
]


_INDENT: Final = " " * 15
_OFFLOADED: Final = {
    Offload.INPUTS: "the inputs of the denoiser's blocks",
    Offload.BLOCKS: "the denoiser's blocks and their inputs",
}


def describe(base: BaseModel, task: Task, machine: Machine) -> list[str]:
    """Return lines for a person with the prediction; with several processes, for one of them."""
    found = chosen(base, task, machine)
    if found is None:
        return ["memory         not predicted: the base model's configurations do not say how large it is"]
    device, available = machine.device, machine.available
    asked = task.train_args.gradient_checkpointing
    kind = "on the GPU, plus about 0.5 GiB for CUDA" if device == "cuda" else "on this machine, plus the program itself"
    if asked == "auto" and available is None and not found.offload:
        plain = predicted(base, task, machine, Decision(recompute=False, apart=found.apart))
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
    is_open = device == "cuda" and available is None
    if device == "cuda" and keeps_encoders(base, task, machine):
        with_them = gib(beside_encoders(found))
        lines.append(f"{_INDENT}the encoders leave the GPU after the first steps, until then {with_them} training")
    else:
        freed = predicted(base, task, machine, Decision(recompute=found.recompute, apart=True))
        lines += _encoders(found, freed, is_open=is_open)
    lines += _blocks(base, task, machine, found, is_open=is_open)
    if available is not None and found.peak > available:
        fits = "; ".join(fitting(base, task, machine))
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


def _blocks(base: BaseModel, task: Task, machine: Machine, found: Prediction, *, is_open: bool) -> list[str]:
    """Return lines on what of the denoiser's blocks stays in main memory, or may do so; see `_encoders`."""
    if found.offload:
        return [f"{_INDENT}{_OFFLOADED[found.offload]} stay in main memory until they compute"]
    lines: list[str] = []
    before: Prediction | None = None
    for level in (Offload.NOTHING, *offload_levels(base, task)) if is_open else ():
        then = predicted(base, task, machine, Decision(recompute=True, apart=True, offload=level))
        if then is None or (before is not None and then.peak >= before.peak):
            continue
        if before is not None:
            lines.append(
                f"{_INDENT}with {_OFFLOADED[level]} in main memory (if less than {gib(int(before.peak / SPARE))} is "
                f"free): {_phases(then)}; main memory {gib(then.main.peak)}"
            )
        before = then
    return lines


def _phases(found: Phases) -> str:
    return f"{gib(found.encode)} encoding, {gib(found.train)} training, {gib(found.validation)} validation"
