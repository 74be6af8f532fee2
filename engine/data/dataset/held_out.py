"""Choose the images that are held out of the training to measure a loss on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from engine.core import rng
from engine.core.canonical_json import canonical_json
from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.core.messages import Say
from engine.data.dataset.dataset import ImageDataset
from engine.data.dataset.open import open_dataset
from engine.data.media.medium import Medium
from engine.task.task import Dataset, HeldOutDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out images."""

    images: ImageDataset
    """The images that are measured, without repeats."""
    num_images: int
    """The number of held-out images; `images` is a sample of them."""
    fingerprint: str
    """The SHA-256 of the dataset's fingerprint and the indices of the measured images, as 64 hex digits."""
    revision: str | None
    """The Hub commit, None for data from elsewhere."""
    num_taken: int = 0
    """The number of images that were taken out of the training dataset."""


def hold_out(
    wanted: HeldOutDataset,
    dataset: Dataset,
    training: ImageDataset,
    medium: Medium,
    *,
    seed: int,
    cache_dir: Path,
    revision: str | None,
    report: Say,
    limits: Limits,
) -> tuple[ImageDataset, HeldOut]:
    """Return the dataset to train on and the held-out images, as `validation.dataset` asks.

    Args:
        wanted: the task's `validation.dataset`.
        dataset: the task's `dataset`.
        training: that dataset, opened, with all images.
        medium: as for `open_dataset`, like `cache_dir`, `report` and `limits`.
        seed: the task's; it decides which images are held out and measured.
        revision: the commit of a Hub dataset that `wanted` names; None resolves its main branch.

    Raises:
        DatasetError: the held-out dataset cannot be opened, or nothing would be left to train on.
        TemporaryError, OutputError: as for `open_dataset`.
    """
    if wanted.fraction is not None:
        if training.num_images < 2:
            noun = training.names.noun
            raise DatasetError(
                f"validation.dataset.fraction: the dataset has one {noun}, none would be left to train on"
            )
        # At least one image is held out, and at least one is trained on.
        count = max(1, min(training.num_images - 1, round(wanted.fraction * training.num_images)))
        order = _order(seed, training)
        held_out = _held_out(training, order[:count], wanted.max_images)
        return training.picked(order[count:]), replace(held_out, num_taken=count)
    try:
        opened = open_dataset(
            _source(dataset, wanted),
            medium,
            cache_dir=cache_dir,
            revision=revision if wanted.split is None else training.revision,
            report=lambda line: report(f"held out: {line.removeprefix('dataset: ')}"),
            limits=limits,
            split=wanted.split,
        )
    except DatasetError as error:
        told = DatasetError(f"validation.{error}" if error.key else f"validation.dataset: {error}")
        told.hub_id = error.hub_id
        raise told from error
    return training, _held_out(opened, _order(seed, opened), wanted.max_images)


def _source(dataset: Dataset, wanted: HeldOutDataset) -> Dataset:
    """Return the held-out dataset: another source or split, with the columns and captions of the training dataset."""
    if wanted.split is None:
        dataset = replace(dataset, name=wanted.name, url=wanted.url, config_name=wanted.config_name)
    return dataset.as_measured


def _order(seed: int, dataset: ImageDataset) -> list[int]:
    """Return all images in a random order, in which they are held out and measured: the dataset may be sorted."""
    order: list[int] = rng.permutation(seed, "held out", 0, dataset.num_images).tolist()
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
