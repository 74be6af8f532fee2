"""What would fit in the place of a task that does not, and the refusal of one that is far too large. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from engine.core.errors import DeviceMemoryError
from engine.job.memory.prediction import SPARE, Prediction, gib, predict, wants_recompute
from engine.models.base_model import BaseModel
from engine.task.task import Task
from engine.training.methods.method import Change
from engine.training.methods.registry import METHODS

_FAR: Final = 1.5
"""How many times what could be had a task is predicted to take to be refused unseen. A prediction is right to within
15% for the published models, and what is free may change: what could fit is tried."""
_MANY_MICRO_BATCHES: Final = 1_000_000
"""The number of micro-batches above which fewer are proposed: each takes some bytes."""


def require_enough(
    base: BaseModel, task: Task, *, device: str, available: int | None, most: int | None, continues: bool
) -> None:
    """Refuse a task that is predicted to take `_FAR` times as much as could be had, before anything is loaded.

    Args:
        base: the base model.
        task: the task.
        device: cuda or cpu.
        available: bytes that tensors may take; None is unknown.
        most: bytes that they could take at the very most; None is unknown, and refuses nothing.
        continues: the task goes on from a checkpoint.

    Raises:
        DeviceMemoryError: says what would fit.
    """
    found = _prediction(base, task, device=device, available=available)
    if found is None or most is None or found.peak <= _FAR * most or _claims_too_much(base, found):
        return
    what = "GPU" if device == "cuda" else "machine"
    advice = advise(base, task, device=device, available=available or 0, continues=continues)
    raise DeviceMemoryError(
        f"the task needs about {gib(found.peak)} of memory ({gib(found.encode)} encoding, {gib(found.train)} training, "
        f"{gib(found.validation)} validation), this {what} has {gib(most)}, so it is not begun; {advice}"
    )


def _claims_too_much(base: BaseModel, found: Prediction) -> bool:
    """Whether the configurations speak of more than twice what the files hold: loading says what is wrong with them."""
    if base.single_file is not None:  # its configurations come of its weights
        return False
    paths = (path for component in base.family.weighted for path in (base.folder / component).glob("*.safetensors"))
    held = sum(path.stat().st_size for path in paths)
    return 0 < 2 * held < found.parameters  # of a byte each, at the least


def advise(base: BaseModel, task: Task, *, device: str, available: int, continues: bool) -> str:
    """What should fit into `available` bytes, in words; empty where nothing can be predicted."""
    if _prediction(base, task, device=device, available=available) is None:
        return ""
    found = fitting(base, task, device=device, available=available)
    if not found:
        return "no change of the task would fit: take a smaller base model, or a machine with more memory"
    kept = "; a checkpoint can be continued with another gradient_checkpointing alone" if continues else ""
    return f"what should fit: {', or '.join(found)}{kept}"


def fitting(base: BaseModel, task: Task, *, device: str, available: int) -> list[str]:
    """Changes of the task that would fit into `available` bytes: of each kind the one that changes least.

    Each would do by itself; where none does, several together are one item. What is proposed takes less than the task
    itself, which may have run out of memory although it was predicted to fit.
    """
    now = _prediction(base, task, device=device, available=available)

    def fits(changed: Task) -> Prediction | None:
        then = _prediction(base, changed, device=device, available=available)
        if then is None or then.peak > SPARE * available:
            return None
        is_less = now is None or then.peak <= SPARE * now.peak or then.train <= SPARE * now.train
        return then if is_less else None

    def first(changes: Iterator[Change]) -> str:
        return next((f"{_said(new)} ({gib(found.peak)})" for new, task in changes if (found := fits(task))), "")

    alone = [text for kind in _KINDS if (text := first(kind(task)))]
    together = [] if alone else [first(_together(task))]
    return [text for text in (*alone, *together) if text]


def _prediction(base: BaseModel, task: Task, *, device: str, available: int | None) -> Prediction | None:
    recompute = wants_recompute(base, task, device=device, available=available)
    return predict(base, task, recompute=recompute, device=device)


def _together(task: Task) -> Iterator[Change]:
    """One kind of change after the other, each as far as it goes before the next one begins."""
    before: dict[str, str] = {}
    for kind in _KINDS:
        options = list(kind(task))
        yield from ((before | new, changed) for new, changed in options)
        if options:
            new, task = options[-1]
            before |= new


def _said(new: dict[str, str]) -> str:
    return " and ".join(f"{key} {value}" for key, value in new.items())


def _with_args(task: Task, **changes: Any) -> Task:
    return replace(task, train_args=replace(task.train_args, **changes))


def _checkpointing(task: Task) -> Iterator[Change]:
    if task.train_args.gradient_checkpointing is False:
        yield {"gradient_checkpointing": "true"}, _with_args(task, gradient_checkpointing=True)


def _smaller_batches(task: Task) -> Iterator[Change]:
    """Smaller batches with as many images a step."""
    size, steps = task.train_args.batch_size, task.train_args.gradient_accumulation_steps
    for parts in sorted({2, 4, 8, 16, 32, 64, size} - {1}):
        if size % parts == 0:
            new = {"batch_size": f"{size // parts}", "gradient_accumulation_steps": f"{steps * parts}"}
            yield new, _with_args(task, batch_size=size // parts, gradient_accumulation_steps=steps * parts)


def _half_precision(task: Task) -> Iterator[Change]:
    if task.mixed_precision == "no":
        yield {"mixed_precision": '"bf16"'}, replace(task, mixed_precision="bf16")


def _less_to_train(task: Task) -> Iterator[Change]:
    yield from METHODS[task.training_type].smaller(task)


def _lower_resolutions(task: Task) -> Iterator[Change]:
    for side in (1024, 768, 512, 384, 256):
        if side < task.train_args.resolution:
            yield {"resolution": f"{side}"}, _with_args(task, resolution=side)


def _fewer_micro_batches(task: Task) -> Iterator[Change]:
    if task.train_args.gradient_accumulation_steps > _MANY_MICRO_BATCHES:
        new = {"gradient_accumulation_steps": f"{_MANY_MICRO_BATCHES}"}
        yield new, _with_args(task, gradient_accumulation_steps=_MANY_MICRO_BATCHES)


_KINDS: Final[tuple[Callable[[Task], Iterator[Change]], ...]] = (
    _checkpointing,
    _smaller_batches,
    _half_precision,
    _less_to_train,
    _lower_resolutions,
    _fewer_micro_batches,
)
"""The one that changes the result least first."""
