"""Find changes that make a task fit into memory, and refuse a task that is far too large. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from engine.core.errors import DeviceMemoryError
from engine.job.memory.decisions import chosen
from engine.job.memory.machine import Machine
from engine.job.memory.prediction import SPARE, Prediction, gib
from engine.models.base_model import BaseModel
from engine.task.task import Quantization, Task
from engine.training.methods.method import Change
from engine.training.methods.registry import METHODS
from engine.training.optimizers.registry import OPTIMIZERS

_FAR: Final = 1.5
"""A task is refused before it starts where its prediction exceeds the most that could be available by this factor.

Predictions are right to within 15% for the published models, and free memory may change: what could fit is tried."""
_MANY_MICRO_BATCHES: Final = 1_000_000
"""The number of micro-batches above which fewer are proposed: each of them takes some bytes."""


def require_enough(
    base: BaseModel,
    task: Task,
    machine: Machine,
    *,
    most: int | None,
    continues: bool,
) -> None:
    """Refuse, before anything is loaded, a task that is predicted to take more than `_FAR` times the memory there is.

    Args:
        base: the base model.
        task: the task.
        machine: where it runs.
        most: bytes that could be made available at most; None is unknown, and refuses nothing.
        continues: whether the task continues from a checkpoint.

    Raises:
        DeviceMemoryError: the message says what should fit.
    """
    found = chosen(base, task, machine)
    if found is None or most is None or found.peak <= _FAR * most or _claims_too_much(base, found):
        return
    what = "GPU" if machine.device == "cuda" else "machine"
    advice = advise(base, task, replace(machine, available=machine.available or 0), continues=continues)
    raise DeviceMemoryError(
        f"the task needs about {gib(found.peak)} of memory ({gib(found.encode)} encoding, {gib(found.train)} training, "
        f"{gib(found.validation)} validation), this {what} has {gib(most)}, so it was not started; {advice}"
    )


def _claims_too_much(base: BaseModel, found: Prediction) -> bool:
    """Return whether the configurations claim more than twice the values that the files hold; loading reports that."""
    if base.single_file is not None:  # its configurations are derived from its weights
        return False
    places = [base.place(component) for component in base.family.weighted]
    paths = [path for place in places for path in place.weight_paths(base.variants.get(place.component))]
    held = sum(path.stat().st_size for path in paths)
    return 0 < 2 * held < found.parameters  # at least one byte per value


def advise(base: BaseModel, task: Task, machine: Machine, *, continues: bool) -> str:
    """Return a text on what should fit into the available memory; empty where nothing can be predicted."""
    if chosen(base, task, machine) is None:
        return ""
    found = fitting(base, task, machine)
    if not found:
        return "no change of the task would fit: use a smaller base model, or a machine with more memory"
    kept = "; of these, only gradient_checkpointing may differ from the checkpoint's" if continues else ""
    return f"what should fit: {', or '.join(found)}{kept}"


def fitting(base: BaseModel, task: Task, machine: Machine) -> list[str]:
    """Return changes of the task that should fit into the available memory: the smallest change of each kind.

    Each of them suffices alone; where none does, one item combines several. Every proposal is predicted to take less
    than the task itself, which may have run out of memory although it was predicted to fit.
    """
    now, limit = chosen(base, task, machine), SPARE * (machine.available or 0)

    def fits(changed: Task) -> Prediction | None:
        then = chosen(base, changed, machine)
        if then is None or then.peak > limit:
            return None
        is_less = now is None or then.peak <= SPARE * now.peak or then.train <= SPARE * now.train
        return then if is_less else None

    def first(changes: Iterator[Change]) -> str:
        return next((f"{_said(new)} ({gib(found.peak)})" for new, task in changes if (found := fits(task))), "")

    alone = [text for kind in _KINDS if (text := first(kind(task)))]
    together = [] if alone else [first(_together(task))]
    return [text for text in (*alone, *together) if text]


def _together(task: Task) -> Iterator[Change]:
    """Yield combined changes: one kind after the other, each taken to its limit before the next begins."""
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
    """Yield smaller batches with the same number of images per step."""
    size, steps = task.train_args.batch_size, task.train_args.gradient_accumulation_steps
    for parts in sorted({2, 4, 8, 16, 32, 64, size} - {1}):
        if size % parts == 0:
            new = {"batch_size": f"{size // parts}", "gradient_accumulation_steps": f"{steps * parts}"}
            yield new, _with_args(task, batch_size=size // parts, gradient_accumulation_steps=steps * parts)


def _half_precision(task: Task) -> Iterator[Change]:
    if task.mixed_precision == "no":
        yield {"mixed_precision": '"bf16"'}, replace(task, mixed_precision="bf16")


def _lighter_optimizer(task: Task) -> Iterator[Change]:
    if lighter := OPTIMIZERS[task.train_args.optimizer].lighter:
        yield {"optimizer": f'"{lighter}"'}, _with_args(task, optimizer=lighter)


def _without_average(task: Task) -> Iterator[Change]:
    if task.train_args.ema_decay is not None:
        yield {"ema_decay": "null"}, _with_args(task, ema_decay=None)


def _without_text_encoders(task: Task) -> Iterator[Change]:
    if task.train_args.train_text_encoder:
        yield {"train_text_encoder": "false"}, _with_args(task, train_text_encoder=False)


def _less_to_train(task: Task) -> Iterator[Change]:
    yield from METHODS[task.training_type].smaller(task)


def _quantised(task: Task) -> Iterator[Change]:
    """Yield formats of fewer bits for the frozen weights, where the method can train on them."""
    if METHODS[task.training_type].needs_original_weights(task):
        return
    fewer: dict[Quantization | None, list[Quantization]] = {None: ["int8", "nf4"], "int8": ["nf4"], "fp8": ["nf4"]}
    for name in fewer.get(task.model.quantization, []):
        yield {"model.quantization": f'"{name}"'}, replace(task, model=replace(task.model, quantization=name))


def _smaller_drawings(task: Task) -> Iterator[Change]:
    rows = task.validation.prompts or ()
    plain = tuple(
        row if isinstance(row, str) else replace(row, width=None, height=None, num_frames=None) for row in rows
    )
    if plain != rows:
        changed = replace(task, validation=replace(task.validation, prompts=plain))
        yield {"validation.prompts": "of the size that is trained"}, changed


def _lower_resolutions(task: Task) -> Iterator[Change]:
    for side in (1024, 768, 512, 384, 256):
        if side < task.train_args.resolution:
            yield {"resolution": f"{side}"}, _with_args(task, resolution=side)


def _fewer_micro_batches(task: Task) -> Iterator[Change]:
    if task.train_args.gradient_accumulation_steps > _MANY_MICRO_BATCHES:
        new = {"gradient_accumulation_steps": f"{_MANY_MICRO_BATCHES}"}
        yield new, _with_args(task, gradient_accumulation_steps=_MANY_MICRO_BATCHES)


def _lighter_method(task: Task) -> Iterator[Change]:
    if lighter := METHODS[task.training_type].lighter:
        yield {"training_type": f'"{lighter}"'}, replace(task, training_type=lighter)


_KINDS: Final[tuple[Callable[[Task], Iterator[Change]], ...]] = (
    _smaller_drawings,
    _checkpointing,
    _smaller_batches,
    _half_precision,
    _lighter_optimizer,
    _without_average,
    _without_text_encoders,
    _less_to_train,
    _quantised,
    _lower_resolutions,
    _fewer_micro_batches,
    _lighter_method,
)
"""Kinds of changes, in the order of their effect on the result: the smallest first."""
