"""Plan and draw a job's validation images, and the baseline's images of the same prompts and seeds."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow

from engine.core import rng
from engine.core.console import NOTE, Meter, say
from engine.core.messages import listing, plural, short
from engine.data import caption_choice
from engine.data.dataset.dataset import ImageDataset
from engine.evaluation import sampling
from engine.evaluation.drawings import VIDEO_SUFFIX, Canvas, Image, plan_images
from engine.models.family import Family
from engine.models.spec import FamilySpec
from engine.results.checkpoint import Checkpoint
from engine.task.task import Prompt, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A training's validation images and clips, as PNG and MP4 files by name."""

    images: list[Image]
    drawn: dict[str, bytes]
    """The images after the task's last step."""
    baseline: list[dict[str, Any]]
    """Descriptions of the baseline's images, as in `prompts.json`."""
    without: dict[str, bytes]
    """The baseline's images."""
    between: dict[str, bytes] = field(default_factory=dict)
    """The images after earlier steps of the task."""


class Drawn(NamedTuple):
    """Images and clips that were drawn."""

    files: dict[str, bytes]
    """PNG and MP4 files by name."""
    flawed: frozenset[str]
    """The names of those that show nothing, since a part of the model computed values that are not finite."""


_ADVICE: Final = {
    "denoiser": "try mixed_precision bf16 or no; where those without the training are good, a lower learning_rate",
    "VAE": "try mixed_precision bf16 or no, or another VAE (model.components.vae)",
}
"""Advice by the part that computed the values."""


def planned_images(task: Task, dataset: ImageDataset, family: FamilySpec) -> list[Image]:
    """Return a task's validation images. They are the same after each of its steps."""
    validation = task.validation
    prompts: Sequence[str | Prompt] | None = validation.given_prompts
    if prompts is None:
        prompts = draw_prompts(dataset, task.seed, validation.num_images, task.dataset.trigger_word)
    return plan_images(prompts, task.seed, validation, family.drawing.of(validation), Canvas.of(task, family))


def draw_prompts(dataset: ImageDataset, seed: int, count: int, trigger_word: str | None = None) -> list[str]:
    """Return `count` captions as validation prompts, with the trigger word; a function of the seed and the dataset.

    Empty captions of a row are left out if it has others: they train guidance, and an image of an empty prompt shows
    nothing of the training.
    """
    order = rng.permutation(seed, "validation prompt", 0, len(dataset))
    draws = rng.words(seed, "validation caption", 0, count)
    prompts = []
    for i in range(count):
        captions = dataset.captions(int(order[i % len(order)]))
        captions = tuple(filter(None, captions)) or captions
        drawn = captions[int(rng.below(draws[i : i + 1, 0], len(captions))[0])]
        prompts.append(caption_choice.with_trigger(drawn, trigger_word))
    return prompts


def without_training(images: list[Image]) -> list[Image]:
    """Return the same images under the file names of the baseline's."""
    return [replace(image, file=f"without-{image.file}") for image in images]


def carried(parent: Checkpoint | None, images: list[Image]) -> dict[str, bytes] | None:
    """Return the baseline's images that the parent carries, if they are those of `images`, else None."""
    if parent is None or parent.baseline != [image.described() for image in images]:
        return None
    return parent.pictures if set(parent.pictures) == {image.file for image in images} else None


def draw(
    images: list[Image],
    family: Family,
    *,
    what: str,
    resolution: int,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> Drawn:
    """Draw images and show the progress. The encoders stay on the device.

    A note says which images show nothing, since a part of the model computed values that are not finite.

    Args:
        images: the images to draw.
        family: the model in memory.
        what: words for the images in the progress line.
        resolution: width and height in pixels.
        device: the device to draw on.
        check_stop: called after each denoising step; raises when the job is to stop.
    """
    flawed: dict[str, list[Image]] = {}

    def not_finite(image: Image, part: str) -> None:
        flawed.setdefault(part, []).append(image)

    noun = "clip" if any(image.is_clip for image in images) else "image"
    meter = Meter(what, f"{noun}s", len(images))
    try:
        files = sampling.draw(
            images,
            family,
            resolution=resolution,
            device=device,
            progress=meter.update,
            check_stop=check_stop,
            not_finite=not_finite,
        )
    finally:
        meter.close()
    for part, found in flawed.items():
        prompts = listing([image.prompt for image in found], short)
        of = plural(len(images), noun)
        say(
            f"{NOTE}{what}: {len(found)} of {of} {'shows' if len(found) == 1 else 'show'} nothing, because the {part} "
            f"computed values that are not finite: {prompts}; {_ADVICE[part]}"
        )
    return Drawn(files, frozenset(image.file for found in flawed.values() for image in found))


def still_of(file: str, data: bytes) -> bytes:
    """Return a PNG file of what a validation image's file shows; of a clip its middle frame.

    Raises:
        UnreadableImage: it is a clip that cannot be decoded.
    """
    if not file.endswith(VIDEO_SUFFIX):
        return data
    from engine.data.media.video.clip import middle_frame  # loads FFmpeg, which images do without

    return sampling.png(np.asarray(middle_frame(data)))


def smaller(png: bytes, side: int) -> bytes:
    """Return a PNG of at most `side` pixels in width and height; the same one if it is small enough."""
    with Pillow.open(io.BytesIO(png)) as picture:
        if max(picture.size) <= side:
            return png
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()
