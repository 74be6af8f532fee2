"""Encode samples (images, clips) to the moments of their latents. Each view is encoded once, or comes from the cache.

The bits of an encoding depend only on its own image: images are encoded one at a time, so cache hits and workers make
no difference.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.core.console import Meter
from engine.core.messages import plural
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.geometry import Geometry, UnreadableImage, geometry
from engine.data.media.medium import Medium
from engine.data.media.rendering import render_all
from engine.data.media.sample_names import SampleNames
from engine.models.family import Family, Tensors
from engine.task.plan.extent import Extent
from engine.task.task import FrameExtraction
from engine.training.encoding.cache import EncodingCache, cache_key
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.finite import require_finite_latents

Skip = Callable[[int, UnreadableImage], None]
"""A function that is called with the index of an image that cannot be shown, and the reason."""


@dataclass(frozen=True, slots=True)
class View:
    """The part of an image that is shown."""

    sample: int
    """The image's index in the dataset."""
    geometry: Geometry
    key: str
    """The key of these pixels, and of their mask, in the cache."""


class ImageEncoder:
    """Encodes views of a dataset's images, with a cache on disk."""

    def __init__(
        self,
        dataset: ImageDataset,
        medium: Medium,
        family: Family,
        cache: EncodingCache,
        placement: EncoderPlacement,
        *,
        check_stop: Callable[[], None],
        frame_extraction: FrameExtraction = "head",
        has_masks: bool = False,
        has_alpha_masks: bool = False,
        num_workers: int = 0,
    ) -> None:
        """
        Args:
            check_stop: called between encodings; raises when the job is to stop.
            frame_extraction: which frames of a longer clip are shown.
            has_masks: whether each image's mask is encoded with it; without a mask, all of an image counts.
            has_alpha_masks: whether the opacity of an image without a mask is its mask.
            num_workers: number of processes that decode, limited to the number of cores.
        """
        self._dataset = dataset
        self._medium = medium
        self._family = family
        self._cache = cache
        self._placement = placement
        self._check_stop = check_stop
        self._frame_extraction = frame_extraction
        self._has_masks = has_masks or has_alpha_masks
        self._has_alpha_masks = has_alpha_masks
        self._num_workers = min(num_workers, os.cpu_count() or 1)
        self._facts: dict[int, tuple[str, Extent]] = {}
        self._mask_names: dict[int, str | None] = {}

    def view(
        self,
        sample: int,
        *,
        target: Extent,
        center_crop: bool,
        crop_words: tuple[int, int] = (0, 0),
        flip: bool = False,
        turn: int = 0,
        clip_word: int = 0,
    ) -> View:
        """Return the view of a sample at the size `target`. Other arguments as in `geometry` and `choose_frames`.

        Raises:
            UnreadableImage: there is no image, or it cannot be shown at this size, or a clip has too few frames.
        """
        digest, found = self._fact(sample)
        frames = self._medium.choose_frames(
            found.frames, target.frames, self._frame_extraction, turn=turn, word=clip_word
        )
        shown = geometry(
            found.size, target=target.size, center_crop=center_crop, crop_words=crop_words, flip=flip, frames=frames
        )
        width, height = target.size
        # A square is named only by its side, as before buckets existed: existing cache entries stay valid.
        side = width if width == height else [width, height]
        more = [self._mask_name(sample)] if self._has_masks else []  # clips have no masks
        more += self._medium.key_parts(shown)
        return View(sample, shown, cache_key("image", digest, side, shown.top, shown.left, shown.flip, *more))

    def extent(self, sample: int) -> Extent:
        """Return a sample's size. Raises UnreadableImage."""
        return self._fact(sample)[1]

    def encode(self, views: Sequence[View], skip: Skip) -> dict[str, Tensors]:
        """Return the moments of the views by their keys, on the CPU; those of masked images include `mask`.

        Args:
            views: views with different keys.
            skip: called for an image that is found unreadable; its views are left out.

        Raises:
            TemporaryError: a worker process was killed.
            NonFiniteError: latents are not finite.
        """
        # Random crops are not stored: they rarely occur twice, and would only fill the disk.
        stored = {one.key: self._cache.load(one.key) for one in views if one.geometry.repeatable}
        moments = {key: found for key, found in stored.items() if found is not None}
        unseen = [one for one in views if one.key not in moments]
        self._read_ahead([one.sample for one in unseen])
        requests = ((self._reader(one.sample), one.geometry) for one in unseen)
        rendered = render_all(requests, self._medium.render, self._num_workers)
        for one, pixels in zip(unseen, _meter(unseen, self._dataset.names).over(rendered), strict=True):
            try:
                if isinstance(pixels, UnreadableImage):
                    raise pixels
                mask = {"mask": self._mask(one)} if self._has_masks else {}
            except UnreadableImage as error:
                skip(one.sample, error)
                continue
            self._placement.bring()
            moments[one.key] = self._family.encode_pixels(pixels) | mask
            require_finite_latents(moments[one.key], f"{self._dataset.names.noun} {self._dataset.name(one.sample)}")
            if one.geometry.repeatable:
                self._cache.store(one.key, moments[one.key])
            self._check_stop()
        return moments

    def _read_ahead(self, samples: Sequence[int]) -> None:
        """Begin to fetch what `encode` reads of samples that are not on this machine."""
        reads: list[int] = []
        for sample in samples:
            # A mask that is the image's own opacity is read from the image once more.
            reads += [sample] * (2 if self._has_masks and self._mask_name(sample) == "alpha" else 1)
        self._dataset.read_ahead(reads, with_masks=self._has_masks, check_stop=self._check_stop)

    def _reader(self, sample: int) -> Callable[[], bytes]:
        return lambda: self._dataset.image_bytes(sample)

    def _fact(self, sample: int) -> tuple[str, Extent]:
        """Return the SHA-256 of a sample's bytes, and its size."""
        if sample not in self._facts:
            digest = self._dataset.known_digest(sample)
            extent = None if digest is None else self._known_extent(sample, digest)
            if digest is None or extent is None:
                data = self._dataset.image_bytes(sample)
                digest = hashlib.sha256(data).hexdigest()
                extent = self._measure(data, digest)
            self._facts[sample] = digest, extent
        return self._facts[sample]

    def _known_extent(self, sample: int, digest: str) -> Extent | None:
        """Return a sample's size if it is known without reading the sample: for a clip, from an earlier job."""
        if not self._medium.has_frames:
            size = self._dataset.known_size(sample)
            return None if size is None else Extent(*size)
        stored = self._cache.load(cache_key("whole clip", digest, self._medium.decoding))
        return None if stored is None else Extent(*stored["extent"].tolist())

    def _measure(self, data: bytes, digest: str) -> Extent:
        """Return a sample's size. A clip is decoded to its end, unless an earlier job has done so.

        Otherwise a clip that is damaged near its end would be left out from the first visit on that shows its end, and
        not before, so that a chain, which begins anew, would show others than an uninterrupted training.
        """
        extent = self._medium.measure(data)
        if self._medium.has_frames:
            key = cache_key("whole clip", digest, self._medium.decoding)
            if self._cache.load(key) is None:
                self._medium.check(data)
                self._cache.store(key, {"extent": torch.tensor(extent)})
        return extent

    def _mask_name(self, sample: int) -> str | None:
        """Return the part of the key for an image's mask; None if all of the image counts."""
        if sample not in self._mask_names:
            name = self._dataset.known_digest(sample, of_mask=True)
            if name is None:
                data = self._dataset.mask_bytes(sample)
                alpha = "alpha" if self._has_alpha_masks else None
                name = alpha if data is None else hashlib.sha256(data).hexdigest()
            self._mask_names[sample] = name
        return self._mask_names[sample]

    def _mask(self, one: View) -> torch.Tensor:
        """Return the mask of a view at the size of its latents: float32, 0 to 1, broadcastable to the latents.

        Raises UnreadableImage.
        """
        shape = self._family.latent_shape(one.geometry.extent)
        wide = (*[1] * (len(shape) - 2), *shape[-2:])
        data, is_alpha = self._dataset.mask_bytes(one.sample), False
        if data is None:
            if not self._has_alpha_masks:
                return torch.ones(wide)
            data, is_alpha = self._dataset.image_bytes(one.sample), True
        pixels = self._medium.render_mask(data, one.geometry, (shape[-1], shape[-2]), alpha=is_alpha)
        return torch.from_numpy(pixels).to(torch.float32).div(255.0).reshape(wide)


def _meter(views: Sequence[View], names: SampleNames) -> Meter:
    """Return a progress bar. An image may have several views: mirrored, or cropped differently."""
    num_images = len({one.sample for one in views})
    if num_images == len(views):
        return Meter("encoding", names.several, num_images)
    return Meter(f"encoding {plural(num_images, names.noun)}", "crops", len(views))
