"""Check a task's keys against its base model, before weights are loaded. No torch."""

from __future__ import annotations

from engine.core.errors import TaskError
from engine.job.job import Job
from engine.models.base_model import BaseModel
from engine.models.spec import FamilySpec
from engine.task.plan.extent import Extent
from engine.task.task import Task
from engine.training.buckets import bucket_sizes


def check_sizes(base: BaseModel, task: Task) -> None:
    """Raise TaskError if the task's sizes, numbers of frames or masks are not for the base model."""
    args, family = task.train_args, base.family
    family.require_frames("train_args.num_frames", args.num_frames)
    _check_clip_keys(family, task)
    sizes = bucket_sizes(args.resolution) if task.transforms.buckets else [args.extent.size]
    for size in sizes:
        family.check_size(base.config, Extent(*size, args.num_frames))


def _check_clip_keys(family: FamilySpec, task: Task) -> None:
    """Raise TaskError for keys that are for clips alone, or for images alone, with a family of the other kind."""
    dataset = task.dataset
    if family.has_frames:
        others = {"mask_column": dataset.mask_column is not None, "alpha_mask": dataset.alpha_mask}
        why = f"masks are for image models, not for a {family.pipeline}"
    else:
        others = {
            "frame_rate": dataset.frame_rate is not None,
            "frame_extraction": dataset.frame_extraction != "head",
        }
        why = f"it is for video models, and a {family.pipeline} makes images"
    for key, is_set in others.items():
        if is_set:
            raise TaskError(f"dataset.{key}: {why}; remove this key")


def check_frozen(job: Job) -> None:
    """Raise TaskError if frozen weights cannot be kept as the task says: quantised, or offloaded."""
    task, args = job.task, job.task.train_args
    reason = job.method.needs_original_weights(task)
    if task.model.quantization and reason:
        raise TaskError(f"model.quantization is {task.model.quantization!r}: {reason}")
    if args.offload is not True:
        return
    if not job.base.family.block_lists:
        reason = f"the denoiser of a {job.base.family.pipeline} has no blocks that can be copied one by one; remove it"
    elif args.gradient_checkpointing is False:
        reason = "it needs gradient checkpointing; remove train_args.gradient_checkpointing"
    if reason:
        raise TaskError(f"train_args.offload is true: {reason}")


def check_noise(job: Job) -> None:
    """Check the keys about noise levels, timesteps and the guidance of a distilled denoiser.

    Raises:
        TaskError: a key has no meaning for the base model, or no timestep is ever drawn.
        ModelError: the base model's scheduler gives no noise levels for the task's size.
    """
    args, family = job.task.train_args, job.base.family
    job.base.check_task(args, job.prediction_type)
    _ = job.timesteps, job.base.describe_noise(args)
    if args.guidance_scale != 1 and not family.takes_guidance(job.base.config):
        raise TaskError(
            f"train_args.guidance_scale is {args.guidance_scale:g}: this {family.pipeline} is not distilled on "
            "guidance, so its denoiser is told no scale; remove this key"
        )
