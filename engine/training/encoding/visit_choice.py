"""Choose what each visit shows: the image, the view of it, and the caption."""

from __future__ import annotations

from functools import partial

from engine.data import caption_choice
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.geometry import UnfitImage, UnreadableImage
from engine.task.plan.extent import Extent
from engine.task.plan.visits import Visit, VisitStream
from engine.task.task import Dataset
from engine.training.encoding.images import ImageEncoder, View
from engine.training.encoding.unreadable import UnreadableImages


class VisitChoice:
    """Chooses the image, the view and the caption of a visit."""

    def __init__(
        self,
        stream: VisitStream,
        dataset: ImageDataset,
        images: ImageEncoder,
        unreadable: UnreadableImages,
        *,
        wording: Dataset,
        extent: Extent,
        center_crop: bool,
    ) -> None:
        """
        Args:
            wording: the task's keys for captions.
            extent: the size of a visit without a bucket.
        """
        self._stream = stream
        self._dataset = dataset
        self._images = images
        self._unreadable = unreadable
        self._wording = wording
        self._extent = extent
        self._center_crop = center_crop

    def view(self, visit: Visit) -> View:
        """Return the view of the visit's image, or if that is unreadable, of the next readable one in the order.

        Raises:
            DatasetError: no image of the dataset is readable.
        """
        for row in self._stream.order.candidates(visit):
            sample = self._dataset.image_index(row)
            if sample in self._unreadable:
                continue
            try:
                return self._images.view(
                    sample,
                    target=visit.bucket or self._extent,
                    center_crop=self._center_crop,
                    crop_words=visit.crop_words,
                    flip=visit.flip,
                    turn=visit.epoch,
                    clip_word=visit.clip_word,
                )
            except UnreadableImage as error:
                # What only does not fit this visit's bucket may fit its own, and is left out here alone.
                if not isinstance(error, UnfitImage) or row == visit.sample:
                    self._unreadable.add(sample, error)
        raise self._unreadable.none_readable()

    def caption(self, visit: Visit, sample: int) -> str:
        """Return the caption of the image `sample` for this visit."""
        order = partial(self._stream.tag_order, visit.number)
        return caption_choice.caption_of_visit(self._dataset.captions(sample), self._wording, visit, order)
