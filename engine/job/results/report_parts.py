"""Find what the report tells besides the job's own results: the chain's earlier tasks, and every setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final

from engine.core.files.atomic_files import read_plain
from engine.data.media.geometry import UnreadableImage
from engine.evaluation import validation_images
from engine.job.job import Job
from engine.results.checkpoint import Checkpoint
from engine.results.output.folder import REPORT
from engine.results.report import earlier as earlier_report
from engine.results.report.earlier import Earlier
from engine.results.report.facts import Setting
from engine.task.identity import canonical
from engine.task.key import is_set
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate

_MAX_REPORT_BYTES: Final = 2**28


def earlier_tasks(job: Job) -> Earlier:
    """Return what the report beside the parent's checkpoint tells of the chain so far; nothing if there is none."""
    if not isinstance(job.parent, Checkpoint) or job.parent_folder is None:
        return Earlier()
    try:
        page = read_plain(job.parent_folder.absolute().parent / REPORT, _MAX_REPORT_BYTES)
    except OSError:
        page = None
    if page is None:
        return Earlier()
    return earlier_report.read(page.decode(errors="replace"), job.parent.digest, job.parent.global_step)


def still_of(file: str, data: bytes) -> bytes:
    """Return a PNG of a validation image's file, of a clip its middle frame; empty if it cannot be decoded."""
    try:
        return validation_images.still_of(file, data)
    except UnreadableImage:  # from a checkpoint that is not our own
        return b""


def smaller(png: bytes, side: int) -> bytes:
    """Return a PNG of at most `side` pixels in width and height; empty if it cannot be read."""
    try:
        return validation_images.smaller(png, side)
    except (OSError, SyntaxError, ValueError):  # from a report that is not our own
        return b""


def settings_of(job: Job) -> list[Setting]:
    """Return every key of the task, with what a null means for this job."""
    effects = _effects(job)
    return [Setting(name, value, default, effects.get(name)) for name, value, default in _flat(job.task)]


def _effects(job: Job) -> dict[str, Any]:
    task, args, steps = job.task, job.task.train_args, job.step_range
    found = {
        "train_args.num_train_steps": (args.num_train_steps, steps.num_steps),
        "train_args.max_train_steps": (args.max_train_steps, steps.max_steps),
        "train_args.prediction_type": (args.prediction_type, job.prediction_type),
        "train_args.timestep_sampling": (args.timestep_sampling, job.base.family.usual_sampling),
        "train_args.text_encoder_learning_rate": (
            args.text_encoder_learning_rate,
            base_text_encoder_rate(args, steps.micro_batches) if args.train_text_encoder else None,
        ),
        "dataset.max_caption_tokens": (task.dataset.max_caption_tokens, job.caption_tokens),
        "validation.guidance_scale": (task.validation.guidance_scale, job.drawing.guidance_scale),
        "validation.num_inference_steps": (task.validation.num_inference_steps, job.drawing.num_inference_steps),
    }
    effects = {name: effect for name, (given, effect) in found.items() if given is None}
    if args.scale_lr:
        effects["train_args.learning_rate"] = base_learning_rate(args, steps.micro_batches)
    return effects


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield dotted key, JSON value, and whether it is the default."""
    for part in fields(value):
        item, name = getattr(value, part.name), f"{prefix}{part.name}"
        if is_dataclass(item):
            yield from _flat(item, f"{name}.")
        else:
            yield name, _json(item), not is_set(value, part)


def _json(item: Any) -> Any:
    if is_dataclass(item):
        return {part.name: _json(getattr(item, part.name)) for part in fields(item)}
    if isinstance(item, dict):
        return {name: _json(one) for name, one in item.items()}
    return [canonical(one) if is_dataclass(one) else one for one in item] if isinstance(item, tuple) else item
