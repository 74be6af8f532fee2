"""Examine a dataset before training, and report on it in lines that `--plan` prints. No torch.

Each examination is bounded in time, so that a plan of a million images takes seconds. A line about a sample says so.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from engine.core import rng
from engine.core.errors import DatasetError
from engine.core.messages import listing, plural
from engine.data import caption_choice
from engine.data.dataset.dataset import ImageDataset, none_readable
from engine.data.dataset.rows import NO_CAPTION
from engine.data.media.frames import choose_frames
from engine.data.media.geometry import UnreadableImage, covering
from engine.data.media.medium import Medium
from engine.job.job import Job
from engine.models.spec import TokenCounter
from engine.task.plan.extent import Extent

SECONDS: Final = 10.0
"""Time limit of the examination of images, and again of that of captions."""
_MAX_RULES: Final = 8

Clock = Callable[[], float]
Target = Callable[[Extent], Extent]
"""The mapping of a sample's size to that of the view that is trained on."""


@dataclass(slots=True)
class ImageAudit:
    """Findings from decoding images."""

    num_seen: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) of each readable image."""
    num_enlarged: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each unreadable image."""
    animated: list[str] = field(default_factory=list)
    """Names of readable images with several frames or pages, of which only the first is shown."""
    num_masked: int = 0
    """Number of readable images that have a mask."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Name of an image, and that of an earlier image with the same bytes."""


@dataclass(slots=True)
class CaptionAudit:
    """Findings from counting tokens; an image may have several captions."""

    num_seen: int = 0
    num_captions: int = 0
    num_empty: int = 0
    longest: int = 0
    longest_name: str = ""
    num_cut: int = 0


def audit(job: Job, *, seconds: float = SECONDS, clock: Clock = time.monotonic) -> list[str]:
    """Return lines for a person about the job's dataset.

    Raises:
        ModelError: the base model's tokenizer is malformed.
        DatasetError: a row has a caption or mask that is not allowed, or no image is readable.
    """
    dataset, whole = job.dataset, job.task.train_args.extent
    target: Target = job.buckets.target if job.buckets else lambda extent: whole
    lines = [f"captions       {_rules(dataset.caption_rules)}"]
    if counter := _counter(job):
        found = look_at_captions(dataset, counter, job.task.dataset.trigger_word, seconds=seconds, clock=clock)
        lines += _caption_lines(found, counter.limit, dataset)
    is_masked, alpha = job.task.dataset.mask_column is not None, job.task.dataset.alpha_mask
    seen = look_at_images(dataset, job.medium, target, seconds, clock, masks=is_masked, alpha=alpha)
    _require_readable(seen, dataset, "the dataset")
    lines += _image_lines(seen, dataset)
    if is_masked or alpha:
        lines.append(_mask_line(seen, dataset))
    if job.held_out:
        measured = look_at_images(job.held_out.images, job.medium, partial(_measured, job), seconds, clock)
        _require_readable(measured, job.held_out.images, "validation.dataset")
        if measured.unreadable:
            lines.append(f"not measured   {_counted(_broken(measured))}")
        num_seen, names = look_for_held_out(dataset, job.held_out.images, seconds, clock)
        lines.append(f"also held out  {_counted(names)}{_sampled(num_seen, dataset)}")
    return lines


def _measured(job: Job, extent: Extent) -> Extent:
    """Return the size at which a held-out sample of the size `extent` is shown.

    Raises UnreadableImage if it has too few frames.
    """
    shown = job.measured_at(extent)
    choose_frames(extent.frames, shown.frames, "head")
    return shown


def _require_readable(found: ImageAudit, dataset: ImageDataset, what: str) -> None:
    """Raise the error that the job would raise where no image can be read."""
    if len(found.unreadable) == dataset.num_images:
        name, reason = found.unreadable[0]
        raise DatasetError(none_readable(what, dataset, name, reason))


def _counter(job: Job) -> TokenCounter | None:
    """Return a counter of the base model's tokens; None where its tokenizer has not been downloaded, or is another."""
    base = job.base
    if any(name.startswith("tokenizer") for name in base.elsewhere):
        return None
    return base.family.token_counter(base.folder, base.single_file, job.caption_tokens)


def _rules(rules: Mapping[str, int]) -> str:
    """Return where captions are from; of many tables, such as shards, the first ones and the number of all."""
    found = [f"{rules[rule]} {'without caption' if rule == NO_CAPTION else f'from {rule}'}" for rule in rules]
    if len(found) <= _MAX_RULES:
        return ", ".join(found)
    return f"{sum(rules.values()):,} from {len(found):,} sources: {listing(found, show=str)}"


def look_at_images(
    dataset: ImageDataset,
    medium: Medium,
    target: Target,
    seconds: float,
    clock: Clock,
    *,
    masks: bool = False,
    alpha: bool = False,
) -> ImageAudit:
    """Decode the images in a fixed pseudorandom order, until all are seen or the time is up.

    `masks`, `alpha`: also check the masks of `dataset.mask_column`, and count those of the alpha channel.
    """
    found, first, end = ImageAudit(), dict[bytes, int](), clock() + seconds

    def is_over() -> bool:
        """Return whether the time is up: a long clip is then left, and what was decoded of it counts."""
        return clock() >= end

    for index in _spread(dataset, seconds, clock):
        found.num_seen += 1
        try:
            data = dataset.image_bytes(index)
            check = medium.check_in_time
            extent = medium.check(data) if check is None else check(data, is_over)
            size, shown = extent.size, target(extent).size
            covering(size, shown)
            mask = dataset.mask_bytes(index) if masks else None
            if mask is not None:
                medium.check_mask(mask, size)
        except UnreadableImage as error:
            found.unreadable.append((dataset.name(index), str(error)))
            continue
        found.sizes.append(size)
        if medium.has_more_frames(data):
            found.animated.append(dataset.name(index))
        found.num_masked += mask is not None or (alpha and medium.has_alpha(data))
        found.num_enlarged += shown[0] > size[0] or shown[1] > size[1]
        other = first.setdefault(hashlib.sha256(data).digest(), index)
        if other != index:
            found.duplicates.append((dataset.name(max(index, other)), dataset.name(min(index, other))))
    return found


def look_for_held_out(
    dataset: ImageDataset, held_out: ImageDataset, seconds: float, clock: Clock
) -> tuple[int, list[str]]:
    """Find the training images that are held out as well, by their bytes: their held-out loss is misleading.

    Returns:
        The number of images that were looked at, and the names of those whose bytes are also in `held_out`.
    """
    measured = {digest for index in held_out.image_indices() if (digest := _digest(held_out, index)) is not None}
    num_seen, names = 0, []
    for index in _spread(dataset, seconds, clock):
        num_seen += 1
        if _digest(dataset, index) in measured:
            names.append(dataset.name(index))
    return num_seen, names


def _digest(dataset: ImageDataset, index: int) -> bytes | None:
    known = dataset.known_digest(index)
    try:
        return bytes.fromhex(known) if known else hashlib.sha256(dataset.image_bytes(index)).digest()
    except UnreadableImage:
        return None


def look_at_captions(
    dataset: ImageDataset, counter: TokenCounter, trigger_word: str | None, *, seconds: float, clock: Clock
) -> CaptionAudit:
    """Count the tokens of captions as they are trained (with trigger word), until all are seen or the time is up."""
    found = CaptionAudit()
    for index in _spread(dataset, seconds, clock):
        found.num_seen += 1
        for caption in dataset.captions(index):
            worded = caption_choice.with_trigger(caption, trigger_word)
            length = counter.count(worded)
            found.num_captions += 1
            found.num_empty += not worded
            found.num_cut += length > counter.limit
            if length > found.longest:
                found.longest, found.longest_name = length, dataset.name(index)
    return found


def _spread(dataset: ImageDataset, seconds: float, clock: Clock) -> Iterator[int]:
    """Yield images in a pseudorandom order, so that those until the time is up are a fair sample; at least one."""
    rows = array("q", dataset.image_indices())
    end = clock() + seconds
    for place in rng.permutation(0, "audit", 0, len(rows)):
        yield rows[place]
        if clock() >= end:
            return


def _caption_lines(found: CaptionAudit, limit: int, dataset: ImageDataset) -> list[str]:
    of_all = f"of {found.num_captions:,}"
    cut = plural(found.num_cut, f"{of_all} is", f"{of_all} are") if found.num_cut else "none is"
    empty = f", {plural(found.num_empty, 'is', 'are')} empty" if found.num_empty else ""
    where = f" ({found.longest_name})" if found.num_cut else ""
    sampled = _sampled(found.num_seen, dataset)
    return [f"tokens         longest caption {found.longest}{where}, {cut} cut at {limit}{empty}{sampled}"]


def _image_lines(found: ImageAudit, dataset: ImageDataset) -> list[str]:
    sampled = _sampled(found.num_seen, dataset)
    lines = []
    if found.sizes:
        ordered = sorted(found.sizes, key=lambda size: size[0] * size[1])
        (narrow, low), (wide, high) = ordered[0], ordered[-1]
        enlarged = f", {plural(found.num_enlarged, 'is', 'are')} enlarged" if found.num_enlarged else ""
        lines.append(f"sizes          {narrow} x {low} to {wide} x {high}{enlarged}{sampled}")
    pairs = [f"{name} = {other}" for name, other in found.duplicates]
    lines.append(f"duplicates     {_counted(pairs)}{sampled}")
    lines.append(f"unreadable     {_counted(_broken(found))}{sampled}")
    if found.animated:
        lines.append(f"several frames {_counted(found.animated)}{sampled}; only the first of each is trained on")
    return lines


def _mask_line(found: ImageAudit, dataset: ImageDataset) -> str:
    some = "no image has a mask: all of each image counts"
    if found.num_masked:
        some = f"{found.num_masked:,} of {plural(len(found.sizes), 'image')}"
    return f"masks          {some}{_sampled(found.num_seen, dataset)}"


def _broken(found: ImageAudit) -> list[str]:
    return [f"{name} ({reason})" for name, reason in found.unreadable]


def _counted(items: list[str]) -> str:
    return f"{len(items):,}: {listing(items, str)}" if items else "none"


def _sampled(num_seen: int, dataset: ImageDataset) -> str:
    of_all = f"{num_seen:,} of {dataset.num_images:,} {dataset.names.several}"
    return "" if num_seen == dataset.num_images else f", in a sample of {of_all}"
