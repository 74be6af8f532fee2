"""From settings to a job that is ready to run: everything is found and checked, nothing is trained. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import checkpoint, model, plan
from .addresses import public
from .checkpoint import Checkpoint, WarmStart
from .dataset import ImageDataset, open_dataset
from .errors import DeviceError, TaskError
from .model import BaseModel
from .output import JobRecord
from .settings import Settings
from .task import (
    DEFAULT_TARGETS,
    PredictionType,
    Task,
    TrainArgs,
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
        return hashlib.sha256(canonical_json(value)).hexdigest()

    @property
    def record(self) -> JobRecord:
        """Which job this is."""
        return JobRecord(self.task_digest, self.parent.digest if self.parent else None)

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
        for key in _RECORDED_IF_SET:
            if train_args[key] == _DEFAULTS[key]:
                del train_args[key]
        said = {key: value for key, value in differences(self.task.dataset).items() if key not in _DATASET_IDENTITY}
        return {
            "train_args": train_args,
            **({"lora": {"dropout": self.task.lora.dropout}} if self.task.lora.dropout else {}),
            "transforms": asdict(self.task.transforms),
            "validation": asdict(self.task.validation),
            "caption_column": self.task.dataset.caption_column,
            "revision": self.task.model.revision,
            **({"dataset": said} if said else {}),
        }

    def changed_settings(self) -> dict[str, list[Any]]:
        """The settings that differ from the parent's: dotted key -> [before, now]."""
        if not isinstance(self.parent, Checkpoint):
            return {}
        before, now = dict(_flat(self.parent.settings)), dict(_flat(self.settings))
        keys = [*now, *(key for key in before if key not in now)]
        return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}


def read_task(settings: Settings) -> Task:
    """Parse the task, and check what it asks of the device.

    Raises:
        TaskError: it is invalid.
        DeviceError: its precision does not exist on the device.
    """
    task = parse_task(settings.task_bytes, source=settings.task_source)
    if settings.device == "cpu" and task.mixed_precision == "fp16":
        raise DeviceError('mixed_precision "fp16" needs a CUDA device; on a CPU use "bf16" or "no"')
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
    parent = checkpoint.load(folder) if folder else None
    chain = parent if isinstance(parent, Checkpoint) else None
    base = model.locate(
        task.model,
        pinned=_pinned_model(chain, task),
        weights=weights,
        report=report,
        cache_dir=settings.cache_dir,
        limits=settings.limits,
    )
    dataset = open_dataset(
        task,
        cache_dir=settings.cache_dir,
        revision=_pinned_dataset(chain, task),
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
    )
    _check_noise(job)
    if chain:
        checkpoint.require_same_world(chain.world, job.world)
    return job


def _check_noise(job: Job) -> None:
    _ = job.timesteps
    if job.task.train_args.zero_terminal_snr and job.prediction_type != "v_prediction":
        raise TaskError(
            "train_args.zero_terminal_snr needs prediction_type v_prediction: where nothing of the image is left, "
            "predicting the noise teaches nothing"
        )


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
    lines.append(f"continues      {_describe_parent(job)}")
    return lines + [f"note: {warning}" for warning in warnings(job)]


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
    if schedule.num_steps == 0:
        found.append("the checkpoint has reached the end of the training: nothing is left to train")
    for key, (before, now) in job.changed_settings().items():
        found.append(f"{key} changes from {before!r} to {now!r} at step {schedule.start_step}")
    return found


def _describe_parent(job: Job) -> str:
    if job.parent is None:
        return "nothing: a fresh adapter"
    if isinstance(job.parent, WarmStart):
        return f"a LoRA without training state ({job.parent.digest[:12]}): step 0, fresh optimizer"
    return f"checkpoint {job.parent.digest[:12]} at step {job.parent.global_step}"
