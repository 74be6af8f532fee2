"""Visits to encodings: each image and caption is encoded once, ahead of the loop, a window of steps at a time.

The bits of an encoding depend on its own image or caption alone: everything is encoded singly, so windows, cache hits
and workers change nothing. Moments are kept, not samples: the posterior is drawn freshly on each visit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch

from engine.core.canonical_json import canonical_json
from engine.core.console import Meter
from engine.core.errors import DatasetError
from engine.core.messages import plural
from engine.data import caption_choice
from engine.data.dataset import ImageDataset, none_readable
from engine.data.media import transforms
from engine.data.media.rendering import render_all
from engine.models.family import Family, Tensors
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import Visit, VisitStream
from engine.task.task import Task
from engine.training.distributed.group import Processes
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.long_step import LongStep

WINDOW_VISITS: Final = 1024
"""Visits whose encodings are in memory at once, unless one round of micro-batches has more: about 0.4 GB for Stable
Diffusion 1.5 at 512 pixels in float32, 1.2 GB at 1024 pixels with text states of width 2048."""


@dataclass(frozen=True, slots=True)
class Example:
    """One visit with what the encoders made of it, on the CPU."""

    visit: Visit
    moments: Tensors
    """What `Family.encode_image` gave; with masks also `mask`."""
    conditioning: Tensors
    tokens: Tensors = field(default_factory=dict)
    """The caption's, where the text encoders are trained and encode it in the loop; else empty."""


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
        step_range: StepRange,
        family: Family,
        cache: EncodingCache,
        device: torch.device,
        check_stop: Callable[[], None],
        report: Callable[[str], None],
        processes: Processes | None = None,
        what: str = "the dataset",
    ) -> None:
        """
        Args:
            check_stop: called between encodings; raises when the job is to stop.
            report: called with a line about an image that is skipped.
            processes: that share the micro-batches out; None is this one alone.
            what: messages call the dataset.
        """
        self._task = task
        self._dataset = dataset
        self._stream = stream
        self._step_range = step_range
        self._family = family
        self._cache = cache
        self._device = device
        self._check_stop = check_stop
        self._report = report
        self._processes = processes or Processes()
        self._what = what
        self._facts: dict[int, tuple[str, tuple[int, int]]] = {}
        self._mask_facts: dict[int, str | None] = {}
        self._is_masked = task.dataset.mask_column is not None or task.dataset.alpha_mask
        self._unreadable: dict[int, str] = {}
        self._shared: set[int] = set()
        """The unreadable images that all processes know of."""
        self._examples: dict[int, Sequence[Example]] = {}
        self._are_encoders_here = False

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image that cannot be trained on; they are found when they are visited."""
        return [(self._dataset.name(sample), reason) for sample, reason in self._unreadable.items()]

    def is_readable(self, sample: int) -> bool:
        """Whether an image that was visited could be read."""
        return sample not in self._unreadable

    def examples(self, step: int) -> Sequence[Example]:
        """The examples of this process's micro-batches of optimizer step `step`, in the order of their visits.

        Steps are asked for once, in order, here or `at_hand`. A step of more visits than a window is a `LongStep`.

        Raises:
            DatasetError: no image of the dataset is readable.
            TemporaryError: a worker process was killed.
        """
        if step not in self._examples:
            self._encode_window(step)
        return self._examples.pop(step)

    def at_hand(self, step: int) -> Sequence[Example]:
        """`examples` of a step that is encoded already; else none."""
        return self._examples.pop(step, [])

    def _encode_window(self, start: int) -> None:
        per_step = self._step_range.visits_per_step
        if per_step > WINDOW_VISITS:
            self._examples = {start: self._long_step(start * per_step)}
            return
        steps = range(start, min(start + WINDOW_VISITS // per_step, self._step_range.stop_step))
        examples = self._encode(start * per_step, len(steps) * per_step)
        per_step = len(examples) // len(steps)
        self._examples = {k: examples[i * per_step : (i + 1) * per_step] for i, k in enumerate(steps)}

    def _long_step(self, start: int) -> LongStep[Example]:
        size, world_size = self._step_range.batch_size, self._processes.world_size
        return LongStep(
            make=self._encode,
            start=start,
            size=size,
            round_visits=size * world_size,
            num_rounds=self._step_range.micro_batches // world_size,
            window=max(1, WINDOW_VISITS // (size * world_size)),
            check_stop=self._check_stop,
        )

    def _encode(self, start: int, count: int) -> list[Example]:
        """This process's examples among the visits number `start … start + count - 1`, whole rounds of micro-batches.

        All processes encode the same visits in the same order.
        """
        visits = list(self._stream.visits(start, count))
        images = self._images(visits)
        captions: dict[str, Tensors] = {}
        examples = [
            Example(
                visit,
                moments,
                self._conditioning(visit, shown.sample, captions) | self._family.place(shown.geometry),
                self._tokens(visit, shown.sample),
            )
            for visit, (shown, moments) in zip(filter(self._is_own, visits), images, strict=True)
        ]
        if self._are_encoders_here:
            # The denoiser gets the device's memory for itself.
            self._family.move_encoders(torch.device("cpu"))
            self._are_encoders_here = False
        self._cache.trim()
        return examples

    def _bring_encoders(self) -> None:
        """Have the encoders on the device, now that there is something to encode: a window of cache hits has not."""
        if not self._are_encoders_here:
            self._are_encoders_here = True
            self._family.move_encoders(self._device)

    def _owner(self, visit: Visit) -> int:
        """The rank of the process that trains on a visit."""
        micro_batch = visit.number % self._step_range.visits_per_step // self._step_range.batch_size
        return self._processes.owner(micro_batch)

    def _is_own(self, visit: Visit) -> bool:
        return self._owner(visit) == self._processes.rank

    def _images(self, visits: Sequence[Visit]) -> list[tuple[_Shown, Tensors]]:
        """What each own visit of a window shows; the other processes do the same with theirs.

        An image that several processes show is encoded by the one that shows it first; the others find it on the disk.
        Repeated until all of it is encoded: an unreadable image is only then found out.
        """
        moments: dict[str, Tensors] = {}
        while True:
            shown = [self._show(visit) for visit in visits]
            first: dict[str, Visit] = {}
            for visit, one in zip(visits, shown, strict=True):
                first.setdefault(one.key, visit)
            own = [one for visit, one in zip(visits, shown, strict=True) if self._is_own(visit)]
            missing = {one.key: one for one in own if one.key not in moments}
            self._encode_images({key: one for key, one in missing.items() if self._is_own(first[key])}, moments)
            # A round of exchange is also what the others wait for before they look on the disk.
            is_settled = self._share_unreadable()
            self._encode_images({key: one for key, one in missing.items() if not self._is_own(first[key])}, moments)
            is_settled &= self._share_unreadable()
            if is_settled:
                return [(one, moments[one.key]) for one in own]

    def _share_unreadable(self) -> bool:
        """Let all processes know of every image that one of them cannot read; False when there was a new one."""
        own = [[sample, reason] for sample, reason in self._unreadable.items() if sample not in self._shared]
        found = {sample: reason for news in self._processes.exchange(own) for sample, reason in news}
        for sample, reason in sorted(found.items()):
            self._skip(sample, reason)
        self._shared.update(found)
        return not found

    def _show(self, visit: Visit) -> _Shown:
        """The visit's image or, where that is unreadable, the next readable one in the order of the rows."""
        for row in self._stream.order.candidates(visit):
            sample = self._dataset.image_index(row)
            if sample in self._unreadable:
                continue
            try:
                digest, size = self._fact(sample)
                mask = [self._mask_fact(sample)] if self._is_masked else []
                geometry = transforms.geometry(
                    size,
                    target=visit.size(self._task.train_args.resolution),
                    center_crop=self._task.transforms.center_crop,
                    crop_words=visit.crop_words,
                    flip=visit.flip,
                )
            except transforms.UnreadableImage as error:
                self._skip(sample, error)
                continue
            width, height = geometry.target
            # A square by its side alone, as before there were others: what is encoded already stays so.
            corner = [width if width == height else [width, height], geometry.top, geometry.left, geometry.flip]
            return _Shown(sample, geometry, _key("image", digest, *corner, *mask))
        raise DatasetError(none_readable(self._what, self._dataset.num_images, *self.skipped[0]))

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
        width, height = one.geometry.target
        shape = self._family.latent_shape(height, width)
        wide = (*[1] * (len(shape) - 2), *shape[-2:])
        data, alpha = self._dataset.mask_bytes(one.sample), False
        if data is None:
            if not self._task.dataset.alpha_mask:
                return torch.ones(wide)
            data, alpha = self._dataset.image_bytes(one.sample), True
        pixels = transforms.render_mask(data, one.geometry, (shape[-1], shape[-2]), alpha=alpha)
        return torch.from_numpy(pixels).to(torch.float32).div(255.0).reshape(wide)

    def _skip(self, sample: int, reason: Exception | str) -> None:
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
        for one, pixels in zip(unseen, _encoding_meter(unseen).over(rendered), strict=True):
            if isinstance(pixels, transforms.UnreadableImage):
                self._skip(one.sample, pixels)
                continue
            try:
                mask = {"mask": self._mask(one)} if self._is_masked else {}
            except transforms.UnreadableImage as error:
                self._skip(one.sample, error)
                continue
            self._bring_encoders()
            moments[one.key] = self._family.encode_image(pixels) | mask
            if one.geometry.repeatable:
                self._cache.store(one.key, moments[one.key])
            self._check_stop()

    def _reader(self, sample: int) -> Callable[[], bytes]:
        return lambda: self._dataset.image_bytes(sample)

    def _conditioning(self, visit: Visit, sample: int, known: dict[str, Tensors]) -> Tensors:
        """The encoded caption of a visit, unless the text encoders are trained: then it is encoded in the loop."""
        if self._task.train_args.train_text_encoder:
            return {}
        caption = self._caption(visit, sample)
        if caption not in known:
            chunks = self._task.dataset.caption_chunks
            key = _key("caption", caption, *([chunks] if chunks > 1 else []))
            stored = self._cache.load(key)
            if stored is None:
                self._bring_encoders()
                stored = self._family.encode_caption(caption)
                self._check_stop()
                # An order of tags is hardly ever seen again: it would only fill the disk.
                if not self._task.dataset.shuffle_tags:
                    self._cache.store(key, stored)
            known[caption] = stored
        return known[caption]

    def _tokens(self, visit: Visit, sample: int) -> Tensors:
        if not self._task.train_args.train_text_encoder:
            return {}
        return self._family.tokenize(self._caption(visit, sample))

    def _caption(self, visit: Visit, sample: int) -> str:
        """One drawn from the sample's, as the task words it."""
        order = partial(self._stream.tag_order, visit.number)
        return caption_choice.caption_of_visit(self._dataset.captions(sample), self._task.dataset, visit, order)


def _encoding_meter(unseen: Sequence[_Shown]) -> Meter:
    """An image may be encoded several times: mirrored, or cut elsewhere."""
    images = len({one.sample for one in unseen})
    if images == len(unseen):
        return Meter("encoding", "images", images)
    return Meter(f"encoding {plural(images, 'image')}", "crops", len(unseen))


def _key(kind: str, *what: object) -> str:
    """A key of the cache. It says of what kind it is: a caption may be spelled like an image's address."""
    return hashlib.sha256(canonical_json([kind, *what])).hexdigest()
