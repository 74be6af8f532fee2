"""Turn settings and a task into a job: find and check everything that it needs. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.core.errors import CheckpointError, DatasetError, DeviceError, JobError, ModelError, TaskError
from engine.core.files.file_hashes import FileDigests
from engine.core.messages import Say
from engine.data.dataset.dataset import ImageDataset
from engine.data.dataset.held_out import HeldOut, hold_out
from engine.data.dataset.open import open_dataset
from engine.data.dataset.sizes import extents_of, read_clips, read_extents
from engine.data.media.medium import Medium
from engine.evaluation.drawing_checks import check_drawings
from engine.evaluation.prompts_file import with_prompts
from engine.job.advice.clips import Survey
from engine.job.advice.task_checks import check_frozen, check_noise, check_sizes
from engine.job.job import Job, medium_of, request_digest, require_same_invariants
from engine.models.components import locating
from engine.models.components.files import is_url
from engine.results import provenance
from engine.results.checkpoint import Checkpoint
from engine.results.output.contents import OutputContents
from engine.results.output.job_record import object_at
from engine.results.trackers.registry import require_services
from engine.task.paths import looking_up, resolve_paths
from engine.task.plan.extent import frame_counts
from engine.task.plan.steps import StepRange
from engine.task.settings import Settings, is_read_only
from engine.task.task import Task, parse_task
from engine.training.buckets import bucket_sizes, sort_into_buckets
from engine.training.distributed.processes import Processes
from engine.training.methods.registry import METHODS, load_parent

if TYPE_CHECKING:
    import torch


def read_task(settings: Settings) -> Task:
    """Parse the task and its file of prompts, and check that the device supports it.

    Raises:
        TaskError: the task or the file is invalid, there are no buckets for its resolution, or a tracker is not
            installed.
        DeviceError: the device does not support its precision.
    """
    require_services(settings.trackers)
    task = parse_task(settings.task_bytes, source=settings.task_source)
    if settings.device == "cpu" and task.mixed_precision == "fp16":
        raise DeviceError('mixed_precision "fp16" needs a CUDA device; on a CPU use "bf16" or "no"')
    if task.transforms.buckets:
        bucket_sizes(task.train_args.resolution)
    return with_prompts(resolve_paths(task, settings.task_folder))


def prepare(
    settings: Settings,
    task: Task,
    *,
    weights: bool,
    say: Say,
    digests: FileDigests | None = None,
    before: Mapping[str, Any] | None = None,
) -> Job:
    """Find the checkpoint, the base model and the dataset, and check that they go together.

    Args:
        settings: the job's settings.
        task: the task, as returned by `read_task`.
        weights: False leaves the base model's weights out of a download.
        say: takes lines for a person.
        digests: hashes of local weights, if they were begun early.
        before: what an earlier start of this job resolved names to (`recorded`), so that a branch that has moved since
            has no effect.

    Raises:
        JobError: something is missing or does not fit; the error's class says what.
    """
    folder = parent_folder(settings, task)
    with _permitted(CheckpointError, "the checkpoint"):
        parent = load_parent(folder, METHODS[task.training_type]) if folder else None
    chain = parent if isinstance(parent, Checkpoint) else None
    if is_read_only(settings.cache_dir):
        say(f"the cache {settings.cache_dir} is read-only: its entries are used, none is added")
    with _permitted(ModelError, "the base model"), _looking_up_models(task, settings):
        base = locating.locate(
            task.model,
            pinned=_pinned_model(before, task) or _pinned_model(_resolved(chain), task),
            pinned_components=_pinned_components(_resolved(chain), task) | _pinned_components(before, task),
            weights=weights,
            report=say,
            cache_dir=settings.cache_dir,
            limits=settings.limits,
            digests=digests,
        )
    check_sizes(base, task)
    medium = medium_of(base, task.dataset)
    with _permitted(DatasetError, "the dataset"):
        dataset, held_out = _open_datasets(settings, task, medium, [before, _resolved(chain)], say)
    step_range = StepRange.of(
        task.train_args,
        num_rows=len(dataset),
        processes=settings.place.multiplier,
        start_step=chain.global_step if chain else 0,
    )
    clips = None
    if medium.read_facts is not None:
        clips = read_clips(dataset, medium, medium.read_facts, settings.cache_dir)
    buckets = None
    if task.transforms.buckets:
        extents = read_extents(dataset, medium, settings.cache_dir) if clips is None else extents_of(clips)
        counts = frame_counts(task.train_args.num_frames, base.family.frame_step)
        buckets = sort_into_buckets(dataset, extents, task.train_args.resolution, counts)
    job = Job(
        task=task,
        base=base,
        dataset=dataset,
        parent=parent,
        parent_folder=folder,
        in_place=is_in_place(folder, settings.output_dir),
        step_range=step_range,
        prediction_type=task.train_args.prediction_type or base.prediction_type,
        buckets=buckets,
        clips=clips,
        held_out=held_out,
    )
    if survey := Survey.of(job):
        survey.require_some()
    base.family.caption_tokens.require(task.dataset)
    check_frozen(job)
    check_noise(job)
    check_drawings(task, base.family, base.config, steps=base.drawing_steps)
    if chain:
        rows = chain.manifest["dataset"].get("rows")
        both = rows if type(rows) is int else None, len(dataset)
        require_same_invariants(chain.world, job.invariants, main_file=job.method.main_file, rows=both)
    return job


def recorded(settings: Settings, task: Task) -> dict[str, Any] | None:
    """Return what an earlier run of this job, finished or not, resolved the task's names to; None without one."""
    parent = parent_folder(settings, task)
    may_be_done = parent is None and not settings.overwrite
    return OutputContents(settings.output_dir).resolved(request_digest(task, parent), result=may_be_done)


def require_same_job(job: Job, device: torch.device, processes: Processes) -> None:
    """Check that all processes prepared the same job on equal devices; otherwise their gradients cannot be combined.

    Raises:
        JobError: something differs; the error's class says what.
    """
    found: list[tuple[str, Any, type[JobError]]] = [
        ("the task's digest", job.task_digest, TaskError),
        ("the base model", job.base.identity, ModelError),
        ("the base model's components", job.base.identities, ModelError),
        ("the dataset's fingerprint", job.dataset.fingerprint, DatasetError),
        ("the held-out images", job.curve, DatasetError),
        ("the checkpoint's digest", job.record.parent, CheckpointError),
        ("the device", provenance.describe_device(device), DeviceError),
        ("the installation", provenance.versions(job.medium.libraries), DeviceError),
    ]
    for what, value, error in found if processes.world_size > 1 else ():
        processes.require_same(what, value, error)


def _open_datasets(
    settings: Settings, task: Task, medium: Medium, before: Sequence[Mapping[str, Any] | None], say: Say
) -> tuple[ImageDataset, HeldOut | None]:
    """Open the training images, and the images of the held-out loss."""
    places: dict[str, Any] = {"cache_dir": settings.cache_dir, "report": say, "limits": settings.limits}
    with _looking_up(task.dataset.name, settings, "dataset.name"):
        revision = _first(_pinned_dataset(one, task) for one in before)
        dataset = open_dataset(task.dataset, medium, revision=revision, **places)
    wanted = task.validation.dataset
    if wanted is None:
        return dataset, None
    with _looking_up(wanted.name, settings, "validation.dataset.name"):
        revision = _first(_pinned_held_out(one, task) for one in before)
        return hold_out(wanted, task.dataset, dataset, medium, seed=task.seed, revision=revision, **places)


def _looking_up(name: str | None, settings: Settings, key: str) -> AbstractContextManager[None]:
    """Return a context in which the name under `key` is looked up on the Hub, if it is neither a path nor a URL."""
    what: Literal["model", "dataset"] = "model" if key.startswith("model.") else "dataset"
    if not name or Path(name).is_absolute() or (what == "model" and is_url(name)):
        return nullcontext()
    return looking_up(name, settings.task_folder, what, key)


@contextmanager
def _looking_up_models(task: Task, settings: Settings) -> Iterator[None]:
    """Enter the context in which the names of the base model and of its components from elsewhere are looked up."""
    components = {f"model.components.{name}.name": one.name for name, one in task.model.components.items()}
    with ExitStack() as stack:
        for key, name in {"model.name": task.model.name, **components}.items():
            stack.enter_context(_looking_up(name, settings, key))
        yield


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


@contextmanager
def _permitted(kind: type[JobError], what: str) -> Iterator[None]:
    """Turn a PermissionError in the block into an error of `kind` that names the file."""
    try:
        yield
    except PermissionError as error:
        raise kind(f"{what} cannot be read: permission denied ({error.filename}); run as a user with access") from None


def _resolved(chain: Checkpoint | None) -> Mapping[str, Any] | None:
    """Return what the tasks of the chain resolved names to, in the shape of `recorded`."""
    return {**chain.manifest, "revision": chain.settings.get("revision")} if chain else None


def _pinned_model(before: Mapping[str, Any] | None, task: Task) -> str | None:
    """Return the commit that the base model's branch was resolved to before; None if this task asks for another one."""
    if before is None or before.get("revision") != task.model.revision:
        return None
    found = object_at(before, "base_model")
    commit = _commit(found.get("revision"))
    return commit if found.get("identity") == f"{task.model.name}@{commit}" else None


def _pinned_components(before: Mapping[str, Any] | None, task: Task) -> dict[str, str]:
    """Return the commits that components' branches were resolved to before, by component; see `_pinned_model`."""
    found: dict[str, str] = {}
    for name, wanted in task.model.components.items():
        one = object_at(before, "base_model", "components", name)
        commit = _commit(one.get("revision"))
        if commit and (one.get("name"), one.get("branch")) == (wanted.name, wanted.revision):
            found[name] = commit
    return found


def _pinned_dataset(before: Mapping[str, Any] | None, task: Task) -> str | None:
    found = object_at(before, "dataset")
    return _commit(found.get("revision")) if found.get("name") == task.dataset.name else None


def _pinned_held_out(before: Mapping[str, Any] | None, task: Task) -> str | None:
    found, wanted = object_at(before, "heldout"), task.validation.dataset
    if wanted is None or wanted.name is None or found.get("name") != wanted.name:
        return None
    return _commit(found.get("revision"))


def _commit(value: Any) -> str | None:
    """Return the value if it is a full commit hash, else None: a manifest is untrusted input."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}", value) else None


def parent_folder(settings: Settings, task: Task) -> Path | None:
    """Return the folder of the checkpoint to continue: from the flag or variable, else from the task."""
    return settings.checkpoint or (Path(task.checkpoint) if task.checkpoint else None)


def is_in_place(folder: Path | None, output_dir: Path) -> bool:
    """Return whether the checkpoint to continue is the output folder's own, which the result then replaces."""
    own = output_dir / "checkpoint"
    return folder is not None and folder.exists() and own.exists() and folder.samefile(own)
