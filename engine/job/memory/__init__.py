"""Predict how much memory a job takes, find out how much there is, and advise on what would fit. No torch."""

from __future__ import annotations

from engine.job.memory.advice import advise, fitting, require_enough
from engine.job.memory.machine import PROGRAM_BYTES, available_bytes, most_bytes
from engine.job.memory.prediction import SPARE, Prediction, gib, predict, wants_recompute
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
    "most_bytes",
    "parts_apart",
    "predict",
    "require_enough",
    "wants_recompute",
]


def parts_apart(base: BaseModel, task: Task, *, device: str, available: int | None, num_processes: int = 1) -> bool:
    """Return whether the text encoders are freed before the denoiser is loaded, since both do not fit."""
    return False


def describe(base: BaseModel, task: Task, *, device: str, available: int | None, num_processes: int = 1) -> list[str]:
    """Return lines for a person with the prediction; with several processes, for one of them."""
    both = [
        predict(base, task, recompute=recompute, device=device, num_processes=num_processes)
        for recompute in (False, True)
    ]
    plain, saving = both
    if plain is None or saving is None:
        return ["memory         not predicted: the base model's configurations do not say how large it is"]
    asked = task.train_args.gradient_checkpointing
    is_open = asked == "auto" and available is None
    wants = wants_recompute(base, task, device=device, available=available, num_processes=num_processes)
    chosen = saving if wants else plain
    kind = "on the GPU, plus about 0.5 GiB for CUDA" if device == "cuda" else "on this machine, plus the program itself"
    if is_open:
        limit = gib(int(plain.train / SPARE))
        lines = [f"memory         {_phases(plain)} {kind}"]
        return [
            *lines,
            f"               with gradient checkpointing (if less than {limit} is free): {gib(saving.train)} training",
        ]
    why = "" if asked != "auto" else f" (auto: {gib(available or 0)} available)"
    with_it = "with" if chosen.recompute else "without"
    lines = [f"memory         {_phases(chosen)} {kind}; {with_it} gradient checkpointing{why}"]
    if available is not None and chosen.peak > available:
        fits = "; ".join(fitting(base, task, device=device, available=available, num_processes=num_processes))
        lines.append(
            f"note: that is more than the {gib(available)} available" + (f"; what should fit: {fits}" if fits else "")
        )
    return lines


def _phases(found: Prediction) -> str:
    return f"{gib(found.encode)} encoding, {gib(found.train)} training, {gib(found.validation)} validation"
