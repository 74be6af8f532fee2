"""Build the encoder of a training's visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from engine.data.dataset.dataset import ImageDataset
from engine.data.media.medium import Medium
from engine.models.family import Family
from engine.task.plan.extent import Extent
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import VisitStream
from engine.task.task import Task
from engine.training.distributed.processes import Processes
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.captions import CaptionEncoder
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.images import ImageEncoder
from engine.training.encoding.unreadable import UnreadableImages
from engine.training.encoding.visit_choice import VisitChoice
from engine.training.encoding.visit_encoder import VisitEncoder


def build_visit_encoder(
    task: Task,
    dataset: ImageDataset,
    medium: Medium,
    *,
    stream: VisitStream,
    step_range: StepRange,
    family: Family,
    cache: EncodingCache,
    placement: EncoderPlacement,
    processes: Processes,
    check_stop: Callable[[], None],
    starts_small: bool = False,
    say: Callable[[str], None],
    extents: Sequence[Extent] = (),
) -> VisitEncoder:
    """Return the encoder of a task's visits.

    Args:
        medium: the medium of the dataset's samples.
        placement: moves or frees the encoders; shuffled captions are stored in the cache if it frees them.
        processes: the processes that share the micro-batches.
        check_stop: called between encodings; raises when the job is to stop.
        starts_small: see `StepWindow`.
        say: takes a line about each image that is skipped.
        extents: the sizes of visits with buckets; empty without buckets.
    """
    images = ImageEncoder(
        dataset,
        medium,
        family,
        cache,
        placement,
        check_stop=check_stop,
        frame_extraction=task.dataset.frame_extraction,
        has_masks=task.dataset.mask_column is not None,
        has_alpha_masks=task.dataset.alpha_mask,
        num_workers=task.dataloader_num_workers,
    )
    captions = CaptionEncoder(
        family,
        cache,
        placement,
        check_stop=check_stop,
        length=family.spec.caption_tokens.unusual(task.dataset),
        is_trained=task.train_args.train_text_encoder,
        is_stored=placement.frees or not task.dataset.shuffle_tags,
    )
    unreadable = UnreadableImages(dataset, processes, say)
    choice = VisitChoice(
        stream,
        dataset,
        images,
        unreadable,
        wording=task.dataset,
        extent=task.train_args.extent,
        center_crop=task.transforms.center_crop,
    )
    return VisitEncoder(
        stream=stream,
        step_range=step_range,
        choice=choice,
        images=images,
        captions=captions,
        unreadable=unreadable,
        family=family,
        cache=cache,
        placement=placement,
        processes=processes,
        starts_small=starts_small,
        check_stop=check_stop,
        latents_bytes=max(_moments_bytes(family, extent) for extent in extents or [task.train_args.extent]),
    )


def _moments_bytes(family: Family, extent: Extent) -> int:
    """Return the bytes of the mean and the logarithm of the variance of a view's latents in float32."""
    return 2 * 4 * math.prod(family.latent_shape(extent))
