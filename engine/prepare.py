"""From settings to a job that is ready to run: everything is found and checked, nothing is trained. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import checkpoint, heldout, kept, model, plan
from .addresses import public
from .buckets import Buckets, bucket_sizes, buckets_of
from .checkpoint import Checkpoint, WarmStart
from .dataset import ImageDataset, open_dataset
from .dataset.held_out import HeldOut, hold_out
from .errors import CheckpointError, DatasetError, DeviceError, JobError, ModelError, TaskError
from .model import BaseModel
from .output import JobRecord
from .settings import Settings, is_read_only
from .task import (
    DEFAULT_TARGETS,
    PredictionType,
    Task,
    TrainArgs,
    Validation,
    canonical,
    canonical_json,
    differences,
    parse_task,
    resolve_paths,
)

Report = Callable[[str], None]

# What a checkpoint's settings say only where it is not the default, as checkpoints older than these keys do.
_RECORDED_IF_SET: Final = (
    "min_timestep",
    "max_timestep",
    "timestep_bias",
    "text_encoder_learning_rate",
    "loss_type",
    "huber_schedule",
    "huber_c",
)
_DEFAULTS: Final = asdict(TrainArgs())
# Where the dataset is, which its fingerprint stands for, what the settings say under another name, and the world.
_DATASET_IDENTITY: Final = ("name", "url", "config_name", "image_column", "caption_column", "max_caption_tokens")
# What a held-out loss does not depend on: that, and what is done to images and captions in training alone.
_NOT_MEASURED: Final = (
    *_DATASET_IDENTITY,
    "caption_dropout",
    "shuffle_tags",
    "keep_tokens",
    "repeats",
    "mask_column",
    "alpha_mask",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task with everything it needs, found and checked."""

    task: Task
    base: BaseModel
    dataset: ImageDataset
    parent: Checkpoint | WarmStart | None
    parent_folder: Path | None = None
    in_place: bool
    """The parent is the output folder's own checkpoint, which this job's result replaces."""
    schedule: plan.Schedule
    prediction_type: PredictionType
    buckets: Buckets | None = None
    held_out: HeldOut | None = None
    """What is not trained on but measured."""

    @property
    def timesteps(self) -> plan.Timesteps:
        """Which timesteps are drawn. Raises TaskError when the task leaves none."""
        return plan.timesteps(self.task.train_args, self.base.num_train_timesteps)

    @property
    def task_digest(self) -> str:
        """What the task asks for, over its canonical form; local folders count by their content."""
        value = canonical(self.task)
        if self.base.revision is None:
            value["model"]["name"] = self.base.identity
        if self.task.dataset.name and self.dataset.revision is None:
            value["dataset"]["name"] = self.dataset.fingerprint
        if self.held_out and "name" in value["validation"]["dataset"] and self.held_out.revision is None:
            value["validation"]["dataset"]["name"] = self.held_out.fingerprint
        return hashlib.sha256(canonical_json(value)).hexdigest()

    @property
    def record(self) -> JobRecord:
        """Which job this is."""
        return JobRecord(self.task_digest, self.parent.digest if self.parent else None)

    @property
    def curve(self) -> str | None:
        """What held-out losses must have in common to be compared, besides the world; None without any."""
        if self.held_out is None:
            return None
        dataset = {key: value for key, value in differences(self.task.dataset).items() if key not in _NOT_MEASURED}
        drawn = [heldout.STRATA, self.timesteps.begin, self.timesteps.end]
        named = {"images": self.held_out.fingerprint, "timesteps": drawn, "dataset": dataset}
        return hashlib.sha256(canonical_json(named)).hexdigest()[:16]

    @property
    def request(self) -> str:
        """What was asked for, before anything was found."""
        return request_digest(self.task, self.parent_folder)

    @property
    def world(self) -> dict[str, Any]:
        """What all tasks of a chain must agree on."""
        task = self.task
        alpha = task.lora.rank if task.lora.alpha is None else task.lora.alpha
        # Only where set: a checkpoint older than these options continues with a task that leaves them out.
        options = {
            "alpha": float(alpha) if alpha != task.lora.rank else None,
            "use_rslora": task.lora.use_rslora,
            "train_text_encoder": task.train_args.train_text_encoder,
            "zero_terminal_snr": task.train_args.zero_terminal_snr,
            "buckets": task.transforms.buckets,
            "heldout_images": self.held_out.num_taken if self.held_out else 0,
            "max_caption_tokens": task.dataset.max_caption_tokens if task.dataset.caption_chunks > 1 else None,
        }
        targets = task.lora.target_modules
        return {
            "base_model": self.base.identity,
            "variants": dict(self.base.variants),
            "adapter": "loftq" if task.lora.init_lora_weights == "loftq" else "lora",
            "rank": task.lora.rank,
            "target_modules": targets if isinstance(targets, str) else sorted(targets or DEFAULT_TARGETS),
            **{key: value for key, value in options.items() if value},
            "resolution": task.train_args.resolution,
            "mixed_precision": task.mixed_precision,
            "prediction_type": self.prediction_type,
            "batch_size": task.train_args.batch_size,
            "micro_batches": self.schedule.micro_batches,
            "seed": task.seed,
            "dataset": self.dataset.fingerprint,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What may change from task to task of a chain, and is recorded in its lineage."""
        train_args = asdict(self.task.train_args)
        for own in ("num_train_steps", "num_train_epochs"):  # a task's own share says nothing about the training
            del train_args[own]
        for agreed in ("train_text_encoder", "zero_terminal_snr"):  # the world has them
            del train_args[agreed]
        del train_args["gradient_checkpointing"]  # how much memory there is changes no bit
        for key in _RECORDED_IF_SET:
            if train_args[key] == _DEFAULTS[key]:
                del train_args[key]
        transforms = asdict(self.task.transforms)
        del transforms["buckets"]  # the world has it
        said = {key: value for key, value in differences(self.task.dataset).items() if key not in _DATASET_IDENTITY}
        return {
            "train_args": train_args,
            **({"lora": {"dropout": self.task.lora.dropout}} if self.task.lora.dropout else {}),
            "transforms": transforms,
            "validation": _validation_settings(self.task.validation, self.curve),
            "caption_column": self.task.dataset.caption_column,
            "revision": self.task.model.revision,
            **({"dataset": said} if said else {}),
            **{key: value for key, value in differences(self.task).items() if key.startswith("checkpoint_")},
        }

    def changed_settings(self) -> dict[str, list[Any]]:
        """The settings that differ from the parent's: dotted key -> [before, now]."""
        if not isinstance(self.parent, Checkpoint):
            return {}
        before, now = dict(_flat(self.parent.settings)), dict(_flat(self.settings))
        keys = [*now, *(key for key in before if key not in now)]
        return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}


def _validation_settings(validation: Validation, curve: str | None) -> dict[str, Any]:
    """Keys younger than the first checkpoints only where they are set; what is held out by its content."""
    said = {"prompt": validation.prompt, "num_images": validation.num_images} | differences(validation)
    return said if curve is None else said | {"dataset": curve}


def read_task(settings: Settings) -> Task:
    """Parse the task, and check what it asks of the device.

    Raises:
        TaskError: it is invalid, or its resolution has no buckets.
        DeviceError: its precision does not exist on the device.
    """
    task = parse_task(settings.task_bytes, source=settings.task_source)
    if settings.device == "cpu" and task.mixed_precision == "fp16":
        raise DeviceError('mixed_precision "fp16" needs a CUDA device; on a CPU use "bf16" or "no"')
    if task.transforms.buckets:
        bucket_sizes(task.train_args.resolution)
    return resolve_paths(task, settings.task_folder)


def prepare(settings: Settings, task: Task, *, weights: bool, report: Report) -> Job:
    """Find the checkpoint, the base model and the dataset, and check that they go together.

    Args:
        settings: of the job.
        task: as `read_task` gave it.
        weights: False leaves the base model's weights out of a download.
        report: takes lines for a person.

    Raises:
        JobError: of the kind of whatever is missing or does not fit.
    """
    folder = parent_folder(settings, task)
    with _permitted(CheckpointError, "the checkpoint"):
        parent = checkpoint.load(folder) if folder else None
    chain = parent if isinstance(parent, Checkpoint) else None
    if is_read_only(settings.cache_dir):
        report(f"the cache {settings.cache_dir} cannot be written: what is in it is used, nothing is added")
    with _permitted(ModelError, "the base model"):
        base = model.locate(
            task.model,
            pinned=_pinned_model(chain, task),
            weights=weights,
            report=report,
            cache_dir=settings.cache_dir,
            limits=settings.limits,
        )
    with _permitted(DatasetError, "the dataset"):
        dataset = open_dataset(
            task,
            cache_dir=settings.cache_dir,
            revision=_pinned_dataset(chain, task),
            report=report,
            limits=settings.limits,
        )
        held_out = None
        if task.validation.dataset is not None:
            dataset, held_out = hold_out(
                task,
                dataset,
                cache_dir=settings.cache_dir,
                revision=_pinned_held_out(chain, task),
                report=report,
                limits=settings.limits,
            )
    schedule = plan.schedule(
        task.train_args,
        num_rows=len(dataset),
        processes=settings.place.multiplier,
        start_step=chain.global_step if chain else 0,
    )
    job = Job(
        task=task,
        base=base,
        dataset=dataset,
        parent=parent,
        parent_folder=folder,
        in_place=is_in_place(folder, settings.output_dir),
        schedule=schedule,
        prediction_type=task.train_args.prediction_type or base.prediction_type,
        buckets=buckets_of(task, dataset, settings.cache_dir),
        held_out=held_out,
    )
    _check_noise(job)
    _check_validation(job)
    if chain:
        checkpoint.require_same_world(chain.world, job.world)
    return job


@contextmanager
def _permitted(kind: type[JobError], what: str) -> Iterator[None]:
    """Say that something cannot be read by this user, where the code that looks for it does not."""
    try:
        yield
    except PermissionError as error:
        raise kind(f"{what} cannot be read: permission denied ({error.filename}); run as a user who can") from None


def _check_noise(job: Job) -> None:
    _ = job.timesteps
    if job.task.train_args.zero_terminal_snr and job.prediction_type != "v_prediction":
        raise TaskError(
            "train_args.zero_terminal_snr needs prediction_type v_prediction: where nothing of the image is left, "
            "predicting the noise teaches nothing"
        )


def _check_validation(job: Job) -> None:
    steps, most = job.task.validation.num_inference_steps, job.base.num_train_timesteps
    if steps >= most:  # schedulers that begin one timestep later would run out of them
        raise TaskError(f"validation.num_inference_steps is {steps}: expected fewer than the model's {most} timesteps")


def _pinned_model(parent: Checkpoint | None, task: Task) -> str | None:
    """The commit that the chain's first task resolved the branch to, unless this task asks for another revision."""
    if parent is None or parent.settings.get("revision") != task.model.revision:
        return None
    found = parent.manifest["base_model"]
    commit = _commit(found.get("revision"))
    return commit if found.get("identity") == f"{task.model.name}@{commit}" else None


def _pinned_dataset(parent: Checkpoint | None, task: Task) -> str | None:
    found = parent.manifest["dataset"] if parent else {}
    return _commit(found.get("revision")) if found.get("name") == task.dataset.name else None


def _pinned_held_out(parent: Checkpoint | None, task: Task) -> str | None:
    found = parent.manifest.get("heldout") if parent else None
    wanted = task.validation.dataset
    if not isinstance(found, dict) or wanted is None or wanted.name is None or found.get("name") != wanted.name:
        return None
    return _commit(found.get("revision"))


def _commit(value: Any) -> str | None:
    """The manifest is a stranger's: only a full commit may stand in for a branch."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}", value) else None


def parent_folder(settings: Settings, task: Task) -> Path | None:
    """The checkpoint to continue: the flag's or variable's, else the task's."""
    return settings.checkpoint or (Path(task.checkpoint) if task.checkpoint else None)


def request_digest(task: Task, parent: Path | None) -> str:
    """A digest of a task and its checkpoint's place: the same command, the same request."""
    value = {"task": canonical(task), "checkpoint": str(parent) if parent else None}
    return hashlib.sha256(canonical_json(value)).hexdigest()


def is_in_place(folder: Path | None, output_dir: Path) -> bool:
    """Whether the checkpoint to continue is the output folder's own, which the result then replaces."""
    own = output_dir / "checkpoint"
    return folder is not None and folder.exists() and own.exists() and folder.samefile(own)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def describe(job: Job) -> list[str]:
    """What would run, in lines for a person."""
    schedule, args = job.schedule, job.task.train_args
    rate = plan.base_learning_rate(args, schedule.micro_batches)
    effective = schedule.visits_per_step
    lines = [
        f"base model     {public(job.task.model.name)} ({job.base.identity[:19]}, {job.prediction_type})",
        f"dataset        {public(job.task.dataset.name or job.task.dataset.url or '')}: {_size(job.dataset)}",
        f"batch          {schedule.batch_size} x {schedule.micro_batches} micro-batches = {effective} images a step",
        f"epoch          {schedule.steps_per_epoch} steps",
        f"this task      steps {schedule.start_step} to {schedule.stop_step} of {schedule.max_steps}"
        f" ({schedule.num_steps} steps, {schedule.num_steps * effective} images"
        f", {schedule.num_steps * effective / len(job.dataset):.2f} epochs)",
        f"learning rate  {rate:g}, {args.lr_scheduler.lr_scheduler}"
        + (f" ({args.learning_rate:g} x {effective} by scale_lr)" if args.scale_lr and effective > 1 else ""),
    ]
    if args.train_text_encoder:
        own = plan.base_text_encoder_rate(args, schedule.micro_batches)
        lines.append(f"text encoder   {own:g}, {args.lr_scheduler.lr_scheduler}")
    if job.buckets:
        lines += job.buckets.lines()
    if job.held_out:
        lines.append(f"held-out loss  {_describe_held_out(job, job.held_out)}")
    lines += _describe_interim(job)
    lines.append(f"continues      {_describe_parent(job)}")
    return lines + [f"note: {warning}" for warning in warnings(job)]


def _describe_held_out(job: Job, held_out: HeldOut) -> str:
    interval, measured = plan.validation_interval(job.task.validation, job.schedule), len(held_out.images)
    rows = heldout.parse(job.parent.heldout) if isinstance(job.parent, Checkpoint) else []
    times = heldout.num_due(rows, curve=job.curve or "", schedule=job.schedule, interval=interval)
    images = f"{measured} of {held_out.num_images}" if measured < held_out.num_images else f"{measured}"
    taken = " taken out of the dataset" if held_out.num_taken else ""
    between = f", every {interval} steps" if interval else ""
    return (
        f"of {images} images{taken}, before and after this task{between}: "
        f"{times} times {measured * heldout.STRATA} forward passes"
    )


def _describe_interim(job: Job) -> list[str]:
    lines = []
    if images := kept.image_steps(job.task, job.schedule):
        lines.append(f"images also    {_listed(images)}")
    if loras := kept.lora_steps(job.task, job.schedule):
        most = job.task.checkpoint_limit
        lines.append(f"LoRAs kept     {_listed(loras)}; of the whole chain those of the latest {most} steps stay")
    return lines


def _listed(steps: range) -> str:
    shown = [str(step) for step in (steps if len(steps) <= 6 else [*steps[:3], "…", *steps[-1:]])]
    return f"after step {', '.join(shown)}"


def _size(dataset: ImageDataset) -> str:
    repeated = f", {len(dataset)} visits an epoch" if len(dataset) != dataset.num_images else ""
    return f"{dataset.num_images} images{repeated}"


def warnings(job: Job) -> list[str]:
    """What is allowed but likely a mistake."""
    schedule, args = job.schedule, job.task.train_args
    scheduler = args.lr_scheduler
    found = []
    if scheduler.lr_scheduler != "constant" and scheduler.lr_warmup_steps >= schedule.max_steps:
        found.append(
            f"lr_warmup_steps is {scheduler.lr_warmup_steps}, the whole training {schedule.max_steps} steps: "
            "the learning rate never reaches its full value"
        )
    if args.text_encoder_learning_rate is not None and not args.train_text_encoder:
        found.append("text_encoder_learning_rate has no effect without train_text_encoder")
    if job.buckets:
        found += job.buckets.warnings(schedule.batch_size)
    if job.task.validation.negative_prompt is not None and job.task.validation.guidance_scale <= 1:
        found.append("validation.negative_prompt has no effect at a guidance_scale of up to 1")
    if "checkpoint_limit" in job.settings and job.task.checkpoint_every_n_steps is None:
        found.append("checkpoint_limit has no effect without checkpoint_every_n_steps")
    if schedule.num_steps == 0:
        found.append("the checkpoint has reached the end of the training: nothing is left to train")
    wanted = job.task.validation.dataset
    if wanted and wanted.config_name and not (wanted.name or wanted.url):
        found.append("validation.dataset.config_name has no effect without name or url")
    for key, (before, now) in job.changed_settings().items():
        found.append(f"{key} changes from {before!r} to {now!r} at step {schedule.start_step}")
        if key == "validation.dataset" and before and now:
            found.append("other images, captions or timesteps are measured than before: a new curve begins")
    return found


def _describe_parent(job: Job) -> str:
    if job.parent is None:
        return "nothing: a fresh adapter"
    if isinstance(job.parent, WarmStart):
        return f"a LoRA without training state ({job.parent.digest[:12]}): step 0, fresh optimizer"
    return f"checkpoint {job.parent.digest[:12]} at step {job.parent.global_step}"
