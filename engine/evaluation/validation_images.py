"""Which validation images a job draws, and the same without the LoRA."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image as Pillow

from engine.core import rng
from engine.core.console import Meter
from engine.data import caption_choice
from engine.data.dataset import ImageDataset
from engine.evaluation import sampling
from engine.job.job import Job
from engine.job.session import Session, Training
from engine.models.family import Family
from engine.results.checkpoint import Checkpoint
from engine.results.output.step_results import IMAGES


@dataclass(frozen=True, slots=True)
class Pictures:
    """The validation images, and the same prompts and seeds without the LoRA; PNG by file name."""

    images: list[sampling.Image]
    drawn: dict[str, bytes]
    baseline: list[dict[str, Any]]
    without: dict[str, bytes]
    between: dict[str, bytes]
    """Those of earlier steps of the task."""


def planned_images(job: Job) -> list[sampling.Image]:
    """What the task's validation images show: the same after each of its steps."""
    wanted, seed = job.task.validation, job.task.seed
    prompts = wanted.given_prompts
    if prompts is None:
        prompts = draw_prompts(job.dataset, seed, wanted.num_images, job.task.dataset.trigger_word)
    return sampling.plan_images(prompts, seed, wanted)


def draw_prompts(dataset: ImageDataset, seed: int, count: int, trigger_word: str | None = None) -> list[str]:
    """`count` captions for validation, the same for a seed and a dataset, with the trigger word.

    Of a row's captions not an empty one: that is there to train guidance, and a picture of it would show nothing.
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


def draw_pictures(session: Session, training: Training) -> Pictures:
    """The validation images, and the same without the LoRA: drawn once in a chain, then carried along."""
    job, family = session.job, training.family
    images = planned_images(job)
    baseline = [replace(image, file=f"without-{image.file}") for image in images]
    described = [image.described() for image in baseline]
    drawn = draw(session, family, "validation", images)
    chain = job.parent if isinstance(job.parent, Checkpoint) else None
    if chain and chain.baseline == described and set(chain.pictures) == {image.file for image in baseline}:
        without = chain.pictures
    else:
        with training.trainable.baseline():
            without = draw(session, family, "validation without the LoRA", baseline)
    between = {name: b"".join(file.chunks()) for name, file in training.kept.files(IMAGES).items()}
    return Pictures(images, drawn, described, without, between)


def draw(
    session: Session,
    family: Family,
    what: str,
    images: list[sampling.Image],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """Draw images, and let a person see how far it is. The encoders are left on the device."""
    meter = Meter(what, "images", len(images))
    try:
        return sampling.draw(
            images,
            family,
            resolution=session.job.task.train_args.resolution,
            device=session.device,
            progress=meter.update,
            check_stop=check_stop,
        )
    finally:
        meter.close()


def smaller(png: bytes, side: int) -> bytes:
    """A PNG of at most `side` pixels in width and height; the same one where it is that already."""
    with Pillow.open(io.BytesIO(png)) as picture:
        if max(picture.size) <= side:
            return png
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()
