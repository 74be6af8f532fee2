"""The images that are held out of the training, to measure a loss on: which they are, and from where."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from engine.core import rng
from engine.core.canonical_json import canonical_json
from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.dataset import ImageDataset, open_dataset
from engine.data.dataset.folder.folders import Report
from engine.task.task import Dataset, HeldOutDataset, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What is measured."""

    images: ImageDataset
    """Each one once."""
    num_images: int
    """How many there are, of which `images` are a sample."""
    fingerprint: str
    """Which images of which content are measured: 64 hex digits."""
    revision: str | None
    """The Hub commit, None for data from elsewhere."""
    num_taken: int = 0
    """How many of them were taken out of the training dataset."""


def hold_out(
    task: Task, training: ImageDataset, *, cache_dir: Path, revision: str | None, report: Report, limits: Limits
) -> tuple[ImageDataset, HeldOut]:
    """What is left to train on, and what is held out, as `validation.dataset` says, which is given.

    Args:
        task: its dataset is `training`.
        training: all of it.
        cache_dir: as for `open_dataset`, and so are `report` and `limits`.
        revision: at which a Hub dataset of its own is opened; None resolves its main branch.

    Raises:
        DatasetError: of the held-out images' source, or nothing would be left to train on.
        TemporaryError, OutputError: as `open_dataset`.
    """
    wanted = task.validation.dataset
    assert wanted is not None, "the task holds nothing out"
    if wanted.fraction is not None:
        if training.num_images < 2:
            raise DatasetError("validation.dataset.fraction: the dataset has one image, none would be left to train on")
        # At least one on either side.
        count = max(1, min(training.num_images - 1, round(wanted.fraction * training.num_images)))
        order = _order(task, training)
        held_out = _held_out(training, order[:count], wanted.max_images)
        return training.picked(order[count:]), replace(held_out, num_taken=count)
    try:
        opened = open_dataset(
            replace(task, dataset=_source(task.dataset, wanted)),
            cache_dir=cache_dir,
            revision=revision if wanted.split is None else training.revision,
            report=lambda line: report(f"held out: {line.removeprefix('dataset: ')}"),
            limits=limits,
            split=wanted.split,
        )
    except DatasetError as error:
        text = str(error)
        is_own = text.startswith(("dataset.name", "dataset.config_name", "dataset.url"))
        where = "validation." if is_own else "validation.dataset: "
        told = DatasetError(f"{where}{text}")
        told.hub_id = error.hub_id
        raise told from error
    return training, _held_out(opened, _order(task, opened), wanted.max_images)


def _source(dataset: Dataset, wanted: HeldOutDataset) -> Dataset:
    """The training dataset's columns and captions; another place, or another split in the same place."""
    if wanted.split is None:
        dataset = replace(dataset, name=wanted.name, url=wanted.url, config_name=wanted.config_name)
    return replace(dataset, repeats=1, mask_column=None, alpha_mask=False)


def _order(task: Task, dataset: ImageDataset) -> list[int]:
    """All images in the order in which they are held out and measured: fair to a dataset sorted by whatever."""
    order: list[int] = rng.permutation(task.seed, "held out", 0, dataset.num_images).tolist()
    return order


def _held_out(dataset: ImageDataset, images: list[int], max_images: int) -> HeldOut:
    measured = sorted(images[:max_images])
    named = canonical_json([dataset.fingerprint, measured])
    return HeldOut(
        images=dataset.picked(measured, repeated=False),
        num_images=len(images),
        fingerprint=hashlib.sha256(named).hexdigest(),
        revision=dataset.revision,
    )
