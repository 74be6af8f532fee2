"""Visits to encodings: each image and caption is encoded once, ahead of the loop, a window of steps at a time.

The bits of an encoding depend on its own image or caption alone: everything is encoded singly, so windows, cache hits
and workers change nothing. Moments are kept, not samples: the posterior is drawn freshly on each visit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from . import rng, transforms, wording
from .cache import EncodingCache
from .dataset import ImageDataset
from .errors import DatasetError
from .families.base import Family, Tensors
from .plan import Schedule, Visit, VisitStream
from .progress import Meter
from .rendering import render_all
from .task import Task, canonical_json

WINDOW_VISITS: Final = 1024
"""Visits whose encodings are in memory at once: about 0.4 GB for Stable Diffusion 1.5 at 512 pixels in float32."""


@dataclass(frozen=True, slots=True)
class Example:
    """One visit with what the encoders made of it, on the CPU."""

    visit: Visit
    moments: Tensors
    """What `Family.encode_image` gave; with masks also `mask`."""
    conditioning: Tensors


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which image a visit shows and how; `key` names these pixels."""

    sample: int
    geometry: transforms.Geometry
    key: str


class VisitEncoder:
    """Gives the examples of any step, encoding the visits of a window of coming steps when it first needs one."""

    def __init__(
        self,
        *,
        task: Task,
        dataset: ImageDataset,
        stream: VisitStream,
        schedule: Schedule,
        family: Family,
        cache: EncodingCache,
        device: torch.device,
        check_stop: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        """
        Args:
            check_stop: called between encodings; raises when the job is to stop.
            report: called with a line about an image that is skipped.
        """
        self._task = task
        self._dataset = dataset
        self._stream = stream
        self._schedule = schedule
        self._family = family
        self._cache = cache
        self._device = device
        self._check_stop = check_stop
        self._report = report
        self._facts: dict[int, tuple[str, tuple[int, int]]] = {}
        self._mask_facts: dict[int, str | None] = {}
        self._is_masked = task.dataset.mask_column is not None or task.dataset.alpha_mask
        self._unreadable: dict[int, str] = {}
        self._examples: dict[int, list[Example]] = {}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image that cannot be trained on; they are found when they are visited."""
        return [(self._dataset.name(sample), reason) for sample, reason in self._unreadable.items()]

    def examples(self, step: int) -> list[Example]:
        """The examples of optimizer step `step`, in the order of their visits. Steps are asked for once, in order.

        Raises:
            DatasetError: no image of the dataset is readable.
            TemporaryError: a worker process was killed.
        """
        if step not in self._examples:
            self._encode_window(step)
        return self._examples.pop(step)

    def _encode_window(self, start: int) -> None:
        per_step = self._schedule.visits_per_step
        steps = range(start, min(start + max(1, WINDOW_VISITS // per_step), self._schedule.stop_step))
        visits = list(self._stream.visits(start * per_step, len(steps) * per_step))
        self._family.move_encoders(self._device)
        images = self._images(visits)
        captions: dict[str, Tensors] = {}
        examples = [
            Example(visit, moments, self._conditioning(visit, shown.sample, captions))
            for visit, (shown, moments) in zip(visits, images, strict=True)
        ]
        # The denoiser gets the device's memory for itself.
        self._family.move_encoders(torch.device("cpu"))
        self._cache.trim()
        self._examples = {k: examples[i * per_step : (i + 1) * per_step] for i, k in enumerate(steps)}

    def _images(self, visits: Sequence[Visit]) -> list[tuple[_Shown, Tensors]]:
        """What each visit shows. Repeated until all of it is encoded: an unreadable image is only then found out."""
        moments: dict[str, Tensors] = {}
        while True:
            shown = [self._show(visit) for visit in visits]
            missing = {one.key: one for one in shown if one.key not in moments}
            if not missing:
                return [(one, moments[one.key]) for one in shown]
            self._encode_images(missing, moments)

    def _show(self, visit: Visit) -> _Shown:
        """The visit's image or, where that is unreadable, the next readable one of the epoch's permutation."""
        order = self._stream.permutation(visit.epoch)
        for offset in range(len(order)):
            sample = self._dataset.image_index(order[(visit.position + offset) % len(order)])
            if sample in self._unreadable:
                continue
            try:
                digest, size = self._fact(sample)
                mask = [self._mask_fact(sample)] if self._is_masked else []
                geometry = transforms.geometry(
                    size,
                    resolution=self._task.train_args.resolution,
                    center_crop=self._task.transforms.center_crop,
                    crop_words=visit.crop_words,
                    flip=visit.flip,
                )
            except transforms.UnreadableImage as error:
                self._skip(sample, error)
                continue
            corner = [geometry.resolution, geometry.top, geometry.left, geometry.flip]
            return _Shown(sample, geometry, _key("image", digest, *corner, *mask))
        raise DatasetError(f"none of the dataset's {len(order)} images is readable; the last problems are in the log")

    def _fact(self, sample: int) -> tuple[str, tuple[int, int]]:
        """The digest of an image's bytes and its size."""
        if sample not in self._facts:
            data = self._dataset.image_bytes(sample)
            self._facts[sample] = hashlib.sha256(data).hexdigest(), transforms.image_size(data)
        return self._facts[sample]

    def _mask_fact(self, sample: int) -> str | None:
        """What names an image's mask; None where all of it counts."""
        if sample not in self._mask_facts:
            data = self._dataset.mask_bytes(sample)
            alpha = "alpha" if self._task.dataset.alpha_mask else None
            self._mask_facts[sample] = alpha if data is None else hashlib.sha256(data).hexdigest()
        return self._mask_facts[sample]

    def _mask(self, one: _Shown) -> torch.Tensor:
        """The mask of the shown part at the size of its latents, float32, 0 to 1, of a shape that broadcasts to them.

        Raises UnreadableImage.
        """
        shape = self._family.latent_shape(one.geometry.resolution)
        wide = (*[1] * (len(shape) - 2), *shape[-2:])
        data, alpha = self._dataset.mask_bytes(one.sample), False
        if data is None:
            if not self._task.dataset.alpha_mask:
                return torch.ones(wide)
            data, alpha = self._dataset.image_bytes(one.sample), True
        pixels = transforms.render_mask(data, one.geometry, (shape[-1], shape[-2]), alpha=alpha)
        return torch.from_numpy(pixels).to(torch.float32).div(255.0).reshape(wide)

    def _skip(self, sample: int, reason: Exception) -> None:
        if sample not in self._unreadable:
            self._unreadable[sample] = str(reason)
            self._report(f"skipping image {self._dataset.name(sample)}: {reason}")

    def _encode_images(self, missing: Mapping[str, _Shown], moments: dict[str, Tensors]) -> None:
        """Add the moments of `missing` to `moments`, from the disk or by decoding and encoding."""
        unseen: list[_Shown] = []
        for key, one in missing.items():
            # A random crop is hardly ever seen again: it would only fill the disk.
            stored = self._cache.load(key) if one.geometry.repeatable else None
            if stored is None:
                unseen.append(one)
            else:
                moments[key] = stored
        requests = ((self._reader(one.sample), one.geometry) for one in unseen)
        # More workers than cores only wait for each other; their number is no part of the bits.
        num_workers = min(self._task.dataloader_num_workers, os.cpu_count() or 1)
        rendered = render_all(requests, num_workers)
        meter = Meter("encoding", "images", len(unseen))
        for done, (one, pixels) in enumerate(zip(unseen, rendered, strict=True), start=1):
            if isinstance(pixels, transforms.UnreadableImage):
                self._skip(one.sample, pixels)
                continue
            try:
                mask = {"mask": self._mask(one)} if self._is_masked else {}
            except transforms.UnreadableImage as error:
                self._skip(one.sample, error)
                continue
            moments[one.key] = self._family.encode_image(pixels) | mask
            if one.geometry.repeatable:
                self._cache.store(one.key, moments[one.key])
            meter.update(done)
            self._check_stop()

    def _reader(self, sample: int) -> Callable[[], bytes]:
        return lambda: self._dataset.image_bytes(sample)

    def _conditioning(self, visit: Visit, sample: int, known: dict[str, Tensors]) -> Tensors:
        """The encoded caption of a visit: one drawn from the sample's, as the task words it."""
        wanted = self._task.dataset
        captions = self._dataset.captions(sample)
        order = partial(self._stream.tag_order, visit.number)
        caption = wording.caption_of_visit(captions, wanted, visit, order)
        if caption not in known:
            key = _key("caption", caption)
            stored = self._cache.load(key)
            if stored is None:
                stored = self._family.encode_caption(caption)
                self._check_stop()
                if not wanted.shuffle_tags:  # an order of tags is hardly ever seen again: it would only fill the disk
                    self._cache.store(key, stored)
            known[caption] = stored
        return known[caption]


def _key(kind: str, *what: object) -> str:
    """A key of the cache. It says of what kind it is: a caption may be spelled like an image's address."""
    return hashlib.sha256(canonical_json([kind, *what])).hexdigest()


def draw_prompts(dataset: ImageDataset, seed: int, count: int, trigger_word: str | None = None) -> list[str]:
    """`count` captions for validation, the same for a seed and a dataset, with the trigger word."""
    order = rng.permutation(seed, "validation prompt", 0, len(dataset))
    draws = rng.words(seed, "validation caption", 0, count)
    prompts = []
    for i in range(count):
        captions = dataset.captions(int(order[i % len(order)]))
        drawn = captions[int(rng.below(draws[i : i + 1, 0], len(captions))[0])]
        prompts.append(wording.with_trigger(drawn, trigger_word))
    return prompts
