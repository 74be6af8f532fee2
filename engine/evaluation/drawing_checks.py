"""Check that a base model can draw a task's validation images. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from engine.core.errors import TaskError
from engine.core.messages import shown
from engine.data.media.geometry import Size
from engine.evaluation.drawings import Canvas
from engine.models.spec import Configs, FamilySpec
from engine.task.plan.extent import Extent
from engine.task.task import Prompt, Task, Validation

_SIDE_STEP: Final = 8
_FARTHEST: Final = 16
"""The largest number of steps by which a suggested size differs in width or height."""


def check_drawings(task: Task, family: FamilySpec, config: Configs, *, steps: range) -> None:
    """Raise TaskError for validation images that the base model cannot draw.

    Args:
        task: the task.
        family: the base model's family.
        config: the base model's configurations.
        steps: the numbers of denoising steps in which the base model's scheduler can draw.
    """
    validation = task.validation
    _check_steps("validation.num_inference_steps", family.drawing.of(validation).num_inference_steps, steps)
    _check_negative("validation.negative_prompt", validation.negative_prompt, family)
    for number, row in enumerate(_rows(validation)):
        if row.num_inference_steps is not None:
            where = where_of(validation, number, "num_inference_steps")
            _check_steps(where, row.num_inference_steps, steps)
        _check_negative(where_of(validation, number, "negative_prompt"), row.negative_prompt, family)
        if row.num_frames is not None:
            family.require_frames(where_of(validation, number, "num_frames"), row.num_frames)
        _check_size(where_of(validation, number, "width and height"), row, Canvas.of(task, family), family, config)


def where_of(validation: Validation, number: int, key: str) -> str:
    """Return a name for messages of a key of the prompt with this number: of an object, or of a row of a file."""
    if validation.prompts_file is None:
        return f"validation.prompts[{number}], {key}"
    return f"validation.prompts_file: row {number} of {shown(Path(validation.prompts_file).name)}, column {key}"


def _rows(validation: Validation) -> list[Prompt]:
    return [Prompt(prompt=one) if isinstance(one, str) else one for one in validation.prompts or ()]


def _check_steps(where: str, steps: int, possible: range) -> None:
    if steps not in possible:
        raise TaskError(
            f"{where} is {steps}: this base model's scheduler can draw in {possible.start} to {possible.stop - 1} steps"
        )


def _check_negative(where: str, negative_prompt: Any, family: FamilySpec) -> None:
    if negative_prompt is not None and not family.takes_negative_prompt:
        raise TaskError(f"{where} has no effect: a {family.pipeline} draws without a negative prompt; remove this key")


def _check_size(where: str, row: Prompt, canvas: Canvas, family: FamilySpec, config: Configs) -> None:
    if row.width is None and row.height is None and row.num_frames is None:
        return  # checked as `train_args.resolution`
    frames = row.num_frames or canvas.num_frames or 1

    def is_possible(size: Size) -> bool:
        try:
            family.check_size(config, Extent(*size, frames))
        except TaskError:
            return False
        return True

    size = row.width or canvas.resolution, row.height or canvas.resolution
    if is_possible(size):
        return
    near = " or ".join(f"{width} x {height}" for width, height in _nearest(size, is_possible))
    raise TaskError(
        f"{where}: this base model cannot draw {Extent(*size, frames)}; "
        f"{f'the nearest that it can is {near}' if near else 'use a smaller size'}"
    )


def _nearest(size: Size, is_possible: Callable[[Size], bool]) -> Iterator[Size]:
    """Yield the nearest possible size that is nowhere larger, and the nearest that is nowhere smaller, if any is."""
    steps = [(x * _SIDE_STEP, y * _SIDE_STEP) for x in range(_FARTHEST + 1) for y in range(_FARTHEST + 1)]
    steps.sort(key=lambda step: (sum(step), max(step)))
    for sign in (-1, 1):
        sizes = ((size[0] + sign * x, size[1] + sign * y) for x, y in steps)
        found = next((one for one in sizes if min(one) > 0 and is_possible(one)), None)
        if found is not None:
            yield found
