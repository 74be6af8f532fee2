"""What a task says in vain: keys that mean nothing beside its other keys, or as they are. No torch."""

from __future__ import annotations

from engine.job.job import Job
from engine.task.task import LrScheduler, Task, TrainArgs
from engine.training.optimizers.registry import OPTIMIZERS


def without_effect(job: Job) -> list[str]:
    """A line for each. A key at its default is no news: nobody may have written it."""
    task = job.task
    found = _of_data(job) + _of_training(job) + _of_optimizers(task.train_args) + _of_validation(task)
    if "checkpoint_limit" in job.settings and task.checkpoint_every_n_steps is None:
        found.append("checkpoint_limit has no effect without checkpoint_every_n_steps")
    return found


def _of_data(job: Job) -> list[str]:
    """Of the keys that say what is trained, on what, and where it starts."""
    model, dataset = job.task.model, job.task.dataset
    is_folder = job.base.revision is None and job.base.single_file is None
    cases = (
        (model.revision != "main" and is_folder, "model.revision has no effect: the base model is a local folder"),
        (bool(dataset.name and dataset.url), "dataset.url has no effect beside dataset.name"),
        (dataset.keep_tokens and not dataset.shuffle_tags, "dataset.keep_tokens has no effect without shuffle_tags"),
        (
            dataset.shuffle_tags and dataset.caption_dropout == 1,
            "dataset.shuffle_tags has no effect: caption_dropout 1 leaves every caption empty",
        ),
    )
    return [line for is_so, line in cases if is_so]


def _of_optimizers(args: TrainArgs) -> list[str]:
    """Of the keys that another optimizer than the task's reads."""
    plain, own = TrainArgs(), OPTIMIZERS[args.optimizer].reads
    others = sorted({key for row in OPTIMIZERS.values() for key in row.reads} - {*own})
    return [
        f"{key} has no effect with the optimizer {args.optimizer}"
        for key in others
        if getattr(args, key) != getattr(plain, key)
    ]


def _of_training(job: Job) -> list[str]:
    args, plain = job.task.train_args, TrainArgs()
    scheduler, bias = args.lr_scheduler, args.timestep_bias
    huber = (args.huber_schedule, args.huber_c)
    biased_range = (bias.begin, bias.end)
    weights = set(job.timesteps.weights)
    cases = (
        (
            scheduler.lr_scheduler == "constant"
            and scheduler.lr_warmup_steps not in (0, LrScheduler().lr_warmup_steps),
            "lr_warmup_steps has no effect with the lr_scheduler constant; constant_with_warmup has a warm-up",
        ),
        (
            args.num_train_steps is not None and args.num_train_epochs != plain.num_train_epochs,
            "num_train_epochs has no effect beside num_train_steps",
        ),
        (
            args.max_train_steps is not None and args.max_train_epochs != plain.max_train_epochs,
            "max_train_epochs has no effect beside max_train_steps",
        ),
        (
            args.text_encoder_learning_rate is not None and not args.train_text_encoder,
            "text_encoder_learning_rate has no effect without train_text_encoder",
        ),
        (
            args.loss_type == "l2" and huber != (plain.huber_schedule, plain.huber_c),
            "huber_schedule and huber_c have no effect with the loss_type l2",
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
            bias.strategy != "none" and len(weights) == 1,
            "timestep_bias has no effect: all timesteps that are trained are drawn equally often",
        ),
    )
    return [line for is_so, line in cases if is_so]


def _of_validation(task: Task) -> list[str]:
    validation, held_out = task.validation, task.validation.dataset
    cases = (
        (
            validation.negative_prompt is not None and validation.guidance_scale <= 1,
            "validation.negative_prompt has no effect at a guidance_scale of up to 1",
        ),
        (
            validation.every_n_steps is not None and validation.every_n_epochs is not None,
            "validation.every_n_epochs has no effect beside every_n_steps",
        ),
        (
            held_out is not None and held_out.config_name and not (held_out.name or held_out.url),
            "validation.dataset.config_name has no effect without name or url",
        ),
    )
    return [line for is_so, line in cases if is_so]
