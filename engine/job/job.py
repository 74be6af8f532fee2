"""A task with everything that it needs, its digests, and what a checkpoint records of it. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.core.canonical_json import canonical_json
from engine.core.errors import CheckpointError
from engine.data.dataset.dataset import ImageDataset
from engine.data.dataset.held_out import HeldOut
from engine.data.dataset.sizes import Clip
from engine.data.media.medium import Medium
from engine.data.media.registry import MEDIA
from engine.models.base_model import BaseModel
from engine.models.objectives.objective import TargetType
from engine.models.spec import DrawingDefaults
from engine.results import held_out_rows, provenance
from engine.results.agreement import differing
from engine.results.checkpoint import Checkpoint
from engine.results.output.job_record import JobRecord
from engine.task.identity import agreed, canonical, recorded
from engine.task.plan.extent import Extent, most_frames
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.task import Dataset, Task
from engine.training.buckets import Buckets
from engine.training.methods.method import MethodSpec
from engine.training.methods.registry import METHODS
from engine.training.methods.warm_start import WarmStart

if TYPE_CHECKING:
    import torch

_OF_NOISE: Final = ("flow_shift", "guidance_scale")
"""Keys of `train_args` that change the loss at a timestep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task with everything that it needs, found and checked."""

    task: Task
    base: BaseModel
    dataset: ImageDataset
    parent: Checkpoint | WarmStart | None
    parent_folder: Path | None = None
    in_place: bool
    """True if the parent is the output folder's own checkpoint, which this job's result replaces."""
    step_range: StepRange
    prediction_type: TargetType
    buckets: Buckets | None = None
    clips: Sequence[Clip] | None = None
    """The facts about each sample, or why it is unreadable; None for a medium whose samples have no frames."""
    held_out: HeldOut | None = None
    """The images of the held-out loss; None where it is not measured."""
    is_ended_early: bool = False
    """True if the task was told to finish before its last step (`ended_at`)."""

    def ended_at(self, step: int) -> Job:
        """Return the job as it is if it was told to finish after `step`: the same one at its last step."""
        if step == self.step_range.stop_step:  # also if it was ended here before
            return self
        return replace(self, step_range=self.step_range.ended_at(step), is_ended_early=True)

    @property
    def method(self) -> MethodSpec:
        """The training method of the task."""
        return METHODS[self.task.training_type]

    @property
    def medium(self) -> Medium:
        """The kind of the dataset's samples."""
        return medium_of(self.base, self.task.dataset)

    def measured_at(self, extent: Extent) -> Extent:
        """Return the size at which a held-out sample of the size `extent` is measured: the square, of a clip with as
        many frames as the training shows of it."""
        whole = self.task.train_args.extent
        return whole._replace(frames=most_frames(extent.frames, self.buckets.frame_counts)) if self.buckets else whole

    def origin(self, device: torch.device) -> dict[str, Any]:
        """Return the device and the versions on which the job's bits depend."""
        return provenance.origin(device, self.medium.libraries)

    @property
    def timesteps(self) -> Timesteps:
        """The timesteps that are drawn. Raises TaskError if the task leaves none."""
        return self.base.timesteps(self.task.train_args)

    @property
    def caption_tokens(self) -> int:
        """The number of tokens of a caption that count."""
        return self.base.family.caption_tokens.of(self.task.dataset)

    @property
    def drawing(self) -> DrawingDefaults:
        """The settings of the validation images, with the family's where the task gives none."""
        return self.base.family.drawing.of(self.task.validation)

    @property
    def task_digest(self) -> str:
        """The digest of `identified_task`."""
        return hashlib.sha256(canonical_json(self.identified_task)).hexdigest()

    @property
    def identified_task(self) -> dict[str, Any]:
        """The task in its canonical form, with content digests in place of local folders' names."""
        value = canonical(self.task)
        if self.base.revision is None:
            value["model"]["name"] = self.base.identity
        for name, found in self.base.elsewhere.items():
            if found.revision is None:
                value["model"]["components"][name]["name"] = found.identity
        if self.task.dataset.name and self.dataset.revision is None:
            value["dataset"]["name"] = self.dataset.fingerprint
        measured = self.task.validation.dataset
        is_local = measured and (measured.name or (measured.split and self.task.dataset.name))
        if self.held_out and self.held_out.revision is None and is_local:
            value["validation"]["dataset"]["name"] = self.held_out.fingerprint
        return value

    @property
    def record(self) -> JobRecord:
        """The job record of the output folder: which job this is, and what its result's bytes depend on."""
        return JobRecord(
            self.task_digest,
            self.parent.digest if self.parent else None,
            invariants=self.invariants,
            curve=self.curve,
            rows=len(self.dataset),
            max_steps=self.step_range.max_steps,
        )

    @property
    def resolved(self) -> dict[str, Any]:
        """The commits and fingerprints that names were resolved to, with the keys of the manifest."""
        elsewhere = {name: found.resolved for name, found in self.base.elsewhere.items()}
        return {
            "dataset": {
                "name": self.task.dataset.name if self.dataset.revision else None,
                "fingerprint": self.dataset.fingerprint,
                "revision": self.dataset.revision,
                "rows": len(self.dataset),
            },
            "base_model": {
                "identity": self.base.identity,
                "revision": self.base.revision,
                **({"components": elsewhere} if elsewhere else {}),
            },
            **({"heldout": self._resolved_held_out(self.held_out)} if self.held_out else {}),
        }

    def _resolved_held_out(self, held_out: HeldOut) -> dict[str, Any]:
        wanted = self.task.validation.dataset
        return {
            "name": wanted.name if wanted and held_out.revision else None,
            "fingerprint": held_out.fingerprint,
            "revision": held_out.revision,
        }

    @property
    def curve(self) -> str | None:
        """A digest of what comparable held-out losses share, besides the invariants; None if none is measured."""
        if self.held_out is None:
            return None
        dataset = self.task.dataset.as_measured
        drawn = [held_out_rows.STRATA, self.timesteps.begin, self.timesteps.end]
        named = {"images": self.held_out.fingerprint, "timesteps": drawn, "dataset": recorded(dataset)}
        named |= {key: value for key, value in recorded(self.task.train_args).items() if key in _OF_NOISE}
        if self.buckets and len(self.buckets.frame_counts) > 1:
            named["frame_counts"] = self.buckets.frame_counts
        return hashlib.sha256(canonical_json(named)).hexdigest()[:16]

    @property
    def request(self) -> str:
        """The digest of the request (`request_digest`)."""
        return request_digest(self.task, self.parent_folder)

    @property
    def invariants(self) -> dict[str, Any]:
        """Return what all tasks of a chain must agree on (the key `world` of `state.json`)."""
        task, tokens = self.task, self.base.family.caption_tokens
        # Only where set: a checkpoint older than these options continues with a task that leaves them out.
        options = {
            "heldout_images": self.held_out.num_taken if self.held_out else 0,
            "max_caption_tokens": self.caption_tokens if self.caption_tokens != tokens.usual else None,
            "ema": task.train_args.ema_decay is not None,
            "components": self.base.identities,
        }
        return {
            "base_model": self.base.identity,
            "variants": dict(self.base.variants),
            **self.method.invariants(self.base.family, task),
            **{key: value for key, value in options.items() if value},
            **agreed(task),
            "prediction_type": self.prediction_type,
            "micro_batches": self.step_range.micro_batches,
            "dataset": self.dataset.fingerprint,
        }

    @property
    def recorded_settings(self) -> dict[str, Any]:
        """Return what a checkpoint records beside its invariants: what may change from task to task of a chain."""
        settings = recorded(self.task)
        if self.curve is not None:
            settings["validation"]["dataset"] = self.curve
        # Two keys whose place in a checkpoint is not that in the task.
        return settings | {
            "caption_column": self.task.dataset.caption_column,
            "revision": self.task.model.revision,
        }

    def changed_settings(self) -> dict[str, list[Any]]:
        """Return the settings that differ from the parent's: dotted key -> [before, now]."""
        if not isinstance(self.parent, Checkpoint):
            return {}
        before, now = dict(_flat(self.parent.settings)), dict(_flat(self.recorded_settings))
        keys = [*now, *(key for key in before if key not in now)]
        return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}


def request_digest(task: Task, parent: Path | None) -> str:
    """Return the digest of a task and the parent's folder. It is known before anything is read."""
    value = {"task": canonical(task), "checkpoint": str(parent) if parent else None}
    return hashlib.sha256(canonical_json(value)).hexdigest()


def medium_of(base: BaseModel, dataset: Dataset) -> Medium:
    """Return the medium that the base model's family is trained on, with the settings of a task's dataset."""
    return MEDIA[base.family.medium].make(dataset)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def require_same_invariants(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    main_file: str,
    rows: tuple[int | None, int | None] = (None, None),
) -> None:
    """Check that a task agrees with the checkpoint that it continues.

    Args:
        found: the checkpoint's invariants.
        expected: this task's (`Job.invariants`).
        main_file: the name of the file of weights that a training can start from.
        rows: number of rows of the dataset, in the checkpoint and now; None where that is not known.

    Raises:
        CheckpointError: naming each setting that differs, with both values.
    """
    lines = differing(found, expected, there="in the checkpoint", here="in this task", rows=rows)
    if lines:
        advice = "use the same settings, or start without a checkpoint"
        if found.get("dataset") != expected.get("dataset"):
            advice += f", or start from its weights alone: a folder that holds only its {main_file}"
        raise CheckpointError(f"the checkpoint cannot be continued by this task: {'; '.join(lines)}; {advice}")
