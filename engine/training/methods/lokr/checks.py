"""Checks of a LoKr task that need no loaded model: they read only headers of files. No torch."""

from __future__ import annotations

from engine.core.errors import CheckpointError, TaskError
from engine.models.base_model import BaseModel
from engine.task.task import Task
from engine.training.methods.base_weights import weight_shapes
from engine.training.methods.lokr.split import LEFT, splits_of, tensor_shapes
from engine.training.methods.lokr.start_file import require_fit
from engine.training.methods.lora.checks import Shape, not_checked, shapes_in, target_shapes
from engine.training.methods.warm_start import WarmStart


def check(base: BaseModel, task: Task, warm_start: WarmStart | None) -> list[str]:
    """Check the target layers, and a LoKr to start from, against the base model's weights.

    Returns:
        Lines on what was not checked.

    Raises:
        TaskError: the task asks for what a LoKr does not have; `lora.target_modules` matches no layer of the base
            model, or one that cannot be adapted; or `lora.factor` is too large for a layer.
        CheckpointError: a LoKr to start from is malformed, or has other factors.
        ModelError: the weights are malformed.
    """
    _require_supported(task)
    family, lora = base.family, task.lora
    shapes = weight_shapes(base, family.denoiser)
    found = {name: Shape(shape) for name, shape in (_start_shapes(warm_start) if warm_start else {}).items()}
    if not shapes:
        return [not_checked(base)]
    layers = target_shapes(family.targets_of(family.denoiser, lora.target_modules), shapes)
    named = {family.lora_name(family.denoiser, name): shape for name, shape in layers.items()}
    expected = tensor_shapes(splits_of(named, lora.rank, lora.factor))
    if warm_start:
        require_fit(found, expected)
    return []


def _require_supported(task: Task) -> None:
    if task.lora.init_lora_weights in ("gaussian", "loftq"):
        raise TaskError(
            f'lora.init_lora_weights: "{task.lora.init_lora_weights}" is for a LoRA; with the training_type lokr use '
            "true, or false"
        )
    if task.train_args.train_text_encoder:
        raise TaskError(
            "train_args.train_text_encoder: with the training_type lokr only the denoiser can be trained, since "
            "Diffusers' pipelines do not load a LoKr into text encoders; set it to false, or use the training_type lora"
        )


def _start_shapes(warm_start: WarmStart) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the header of a file to start from."""
    found = shapes_in(warm_start.content(warm_start.name))
    if not any(name.endswith(LEFT) for name in found):
        raise CheckpointError(
            f"{warm_start.name} in the checkpoint is not a LoKr, from which a LoKr could start; start without it, or "
            "use the training_type lora"
        )
    return found
