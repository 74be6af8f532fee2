"""Find keys of a task that are set but have no effect, because of its other keys or of this job. No torch."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

from engine.data.media.sample_names import OF_IMAGES, OF_VIDEOS
from engine.evaluation.drawing_checks import where_of
from engine.job.job import Job
from engine.task.key import about_field, is_set
from engine.task.plan.timesteps import Timesteps
from engine.task.task import LrScheduler, Task, TrainArgs
from engine.training.methods.registry import METHODS
from engine.training.optimizers.registry import OPTIMIZERS


def without_effect(job: Job) -> list[str]:
    """Return a line for each key that is set and has no effect; a key at its default counts as not set."""
    task = job.task
    found = _declared(task) + _of_data(job) + _of_training(job) + _of_timesteps(job)
    found += _of_methods(task)
    return found + _of_optimizers(task.train_args) + _of_validation(job)


def _declared(value: Any, prefix: str = "") -> list[str]:
    """Return the lines that follow from the `needs` and `yields_to` of each key."""
    found = []
    for part in fields(value):
        item, about = getattr(value, part.name), about_field(part)
        if is_dataclass(item):
            found += _declared(item, f"{prefix}{part.name}.")
        elif not is_set(value, part):
            continue
        elif about.needs and not getattr(value, about.needs):
            found.append(f"{prefix}{part.name} has no effect without {prefix}{about.needs}")
        elif about.yields_to and getattr(value, about.yields_to):
            found.append(f"{prefix}{part.name} has no effect beside {prefix}{about.yields_to}")
    return found


def _of_data(job: Job) -> list[str]:
    """Return the lines about the model and the dataset."""
    model, dataset = job.task.model, job.task.dataset
    is_folder = job.base.revision is None and job.base.single_file is None
    cases = (
        (model.revision != "main" and is_folder, "model.revision has no effect: the base model is a local folder"),
        (
            dataset.shuffle_tags and dataset.caption_dropout == 1,
            "dataset.shuffle_tags has no effect: caption_dropout 1 leaves every caption empty",
        ),
    )
    own = job.medium.names
    columns = ((OF_IMAGES, dataset.image_column), (OF_VIDEOS, dataset.video_column))
    return [line for is_so, line in cases if is_so] + [
        f"dataset.{names.column_key} has no effect: this model is trained on {own.several}, in dataset.{own.column_key}"
        for names, column in columns
        if names != own and column != names.default_column
    ]


def _of_methods(task: Task) -> list[str]:
    """Return the lines about keys that only other methods read."""
    own = METHODS[task.training_type].reads
    others = sorted({key for row in METHODS.values() for key in row.reads} - {*own})
    return [
        f"{key}.{part.name} has no effect with the training_type {task.training_type}"
        for key in others
        for part in fields(getattr(task, key))
        if is_set(getattr(task, key), part)
    ]


def _of_optimizers(args: TrainArgs) -> list[str]:
    """Return the lines about keys that only other optimizers read."""
    plain, own = TrainArgs(), OPTIMIZERS[args.optimizer].reads
    others = sorted({key for row in OPTIMIZERS.values() for key in row.reads} - {*own})
    return [
        f"{key} has no effect with the optimizer {args.optimizer}"
        for key, value in ((key, attrgetter(key)) for key in others)
        if value(args) != value(plain)
    ]


def _of_training(job: Job) -> list[str]:
    """Return the lines about the learning rate and the loss."""
    args, plain = job.task.train_args, TrainArgs()
    scheduler, huber = args.lr_scheduler, (args.huber_schedule, args.huber_c)
    cases = (
        (
            scheduler.lr_scheduler == "constant"
            and scheduler.lr_warmup_steps not in (0, LrScheduler().lr_warmup_steps),
            "lr_warmup_steps has no effect with the lr_scheduler constant; constant_with_warmup has a warm-up",
        ),
        (
            args.loss_type == "l2" and huber != (plain.huber_schedule, plain.huber_c),
            "huber_schedule and huber_c have no effect with the loss_type l2",
        ),
    )
    return [line for is_so, line in cases if is_so]


def _of_timesteps(job: Job) -> list[str]:
    """Return the lines about which timesteps are drawn."""
    args, plain = job.task.train_args, TrainArgs()
    bias, biased_range = args.timestep_bias, (args.timestep_bias.begin, args.timestep_bias.end)
    sampling = job.base.timestep_sampling(args)
    unsampled = Timesteps.of(replace(args, timestep_sampling=None), job.base.num_train_timesteps)
    cases = (
        (
            sampling != "logit_normal" and (args.logit_mean, args.logit_std) != (plain.logit_mean, plain.logit_std),
            f"logit_mean and logit_std have no effect with the timestep_sampling {sampling}",
        ),
        (
            sampling != "mode" and args.mode_scale != plain.mode_scale,
            f"mode_scale has no effect with the timestep_sampling {sampling}",
        ),
        (
            bias.strategy == "none" and bias != plain.timestep_bias,
            "timestep_bias has no effect with the strategy none",
        ),
        (
            bias.strategy in ("earlier", "later")
            and biased_range != (plain.timestep_bias.begin, plain.timestep_bias.end),
            f"timestep_bias.begin and end have no effect with the strategy {bias.strategy}",
        ),
        (
            bias.strategy == "range" and bias.portion != plain.timestep_bias.portion,
            "timestep_bias.portion has no effect with the strategy range",
        ),
        (
            bias.strategy != "none" and len(set(unsampled.weights)) == 1,
            "timestep_bias has no effect: all timesteps that are trained are drawn equally often",
        ),
    )
    return [line for is_so, line in cases if is_so]


def _of_validation(job: Job) -> list[str]:
    """Return the lines about `validation`."""
    validation, held_out = job.task.validation, job.task.validation.dataset
    least, usual = job.base.family.no_guidance, job.drawing.guidance_scale
    rows = validation.given_prompts or []
    scales = [usual if row.guidance_scale is None else row.guidance_scale for row in rows]
    cases = (
        (
            validation.negative_prompt is not None and max(scales, default=usual) <= least,
            f"validation.negative_prompt has no effect at a guidance_scale of up to {least:g}",
        ),
        (
            held_out is not None and held_out.config_name and not (held_out.name or held_out.url),
            "validation.dataset.config_name has no effect without name or url",
        ),
        *(
            (
                row.negative_prompt is not None and scale <= least,
                f"{where_of(validation, number, 'negative_prompt')} has no effect at a guidance_scale of up to "
                f"{least:g}",
            )
            for number, (row, scale) in enumerate(zip(rows[: len(validation.prompts or ())], scales, strict=False))
        ),
    )
    return [line for is_so, line in cases if is_so]
