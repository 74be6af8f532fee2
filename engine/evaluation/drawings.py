"""Plan validation images and clips: prompts, seeds, sizes and options. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from engine.core import rng
from engine.models.spec import DrawingDefaults, FamilySpec
from engine.task.plan.extent import Extent
from engine.task.task import Prompt, Task, Validation

PROMPTS_FILE: Final = "prompts.json"
VIDEO_SUFFIX: Final = ".mp4"
"""The suffix of a clip's file. Images, also those of base models that draw video, are PNG files."""
_UNSAID: Final = DrawingDefaults(guidance_scale=7.5, num_inference_steps=30)
"""The settings of an image whose entry in `prompts.json` does not have them, whatever the family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The size, in pixels, and the length of validation images whose prompts do not give them."""

    resolution: int = 512
    """Width and height."""
    num_frames: int | None = None
    """None for base models that draw images."""
    frame_rate: float | None = None
    """Frames per second of a clip; None for base models that draw images."""

    @classmethod
    def of(cls, task: Task, family: FamilySpec) -> Canvas:
        """Return those of a task."""
        resolution = task.train_args.resolution
        if not family.has_frames:
            return cls(resolution=resolution)
        rate = family.frame_rate if task.dataset.frame_rate is None else task.dataset.frame_rate
        return cls(resolution=resolution, num_frames=task.train_args.num_frames, frame_rate=rate)


@dataclass(frozen=True, slots=True)
class Image:
    """A validation image or clip: what Diffusers needs to draw the same from the same weights."""

    file: str
    prompt: str
    seed: int
    """The seed of a CPU `torch.Generator`."""
    negative_prompt: str | None = None
    guidance_scale: float = _UNSAID.guidance_scale
    num_inference_steps: int = _UNSAID.num_inference_steps
    width: int | None = None
    """Pixels. None, as is the height, for an image (no clip) of the task's resolution."""
    height: int | None = None
    num_frames: int | None = None
    """None for base models that draw images."""
    frame_rate: float | None = None
    """Frames per second; None for base models that draw images."""

    @property
    def is_clip(self) -> bool:
        """True for a clip, false for an image."""
        return self.file.endswith(VIDEO_SUFFIX)

    def described(self) -> dict[str, Any]:
        """Return an entry of `prompts.json`. It has the options, which begin with the negative prompt, only if they are
        not at their defaults."""
        values = {part.name: (getattr(self, part.name), part.default) for part in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def extent(self, resolution: int) -> Extent:
        """Return the size in pixels and the number of frames; `resolution` is the task's."""
        return Extent(self.width or resolution, self.height or resolution, self.num_frames or 1)


def plan_images(
    prompts: Sequence[str | Prompt],
    seed: int,
    wanted: Validation | None = None,
    drawing: DrawingDefaults = _UNSAID,
    canvas: Canvas | None = None,
) -> list[Image]:
    """Return the images for these prompts. They are the same through a whole chain.

    Args:
        prompts: one for each image; a `Prompt` may have settings of its own.
        seed: the task's seed, from which images get theirs if neither their prompt nor `wanted` has one.
        wanted: the task's options of drawing; None is none.
        drawing: the guidance and the steps of prompts without their own (`Job.drawing`).
        canvas: the size and the length of prompts without their own; None is that of an image of 512 x 512.
    """
    wanted, canvas = wanted or Validation(), canvas or Canvas()
    drawn = rng.words(seed, "validation seed", 0, len(prompts))[:, 0]
    found = []
    for i, one in enumerate(prompts):
        row = Prompt(prompt=one) if isinstance(one, str) else one
        usual = int(drawn[i]) >> 32 if wanted.seed is None else wanted.seed + i
        image = Image(
            f"{i}.png",
            row.prompt,
            usual if row.seed is None else row.seed,
            wanted.negative_prompt if row.negative_prompt is None else row.negative_prompt,
            drawing.guidance_scale if row.guidance_scale is None else row.guidance_scale,
            drawing.num_inference_steps if row.num_inference_steps is None else row.num_inference_steps,
        )
        found.append(_on_canvas(image, row, canvas))
    return found


def _on_canvas(image: Image, row: Prompt, canvas: Canvas) -> Image:
    """Return an image with its size and length, if it has others than any image of the task's resolution."""
    is_clip = canvas.num_frames is not None
    if row.width is not None or row.height is not None or is_clip:
        image = replace(image, width=row.width or canvas.resolution, height=row.height or canvas.resolution)
    if not is_clip:
        return image
    frames = row.num_frames or canvas.num_frames or 1
    file = image.file if frames == 1 else image.file.replace(".png", VIDEO_SUFFIX)
    return replace(image, file=file, num_frames=frames, frame_rate=canvas.frame_rate)


def extents(task: Task, family: FamilySpec) -> list[Extent]:
    """Return the size and the number of frames of each of a task's validation images, which needs no dataset."""
    given = task.validation.given_prompts
    prompts = [Prompt(prompt="")] * task.validation.num_images if given is None else given
    canvas = Canvas.of(task, family)
    return [image.extent(canvas.resolution) for image in plan_images(prompts, task.seed, canvas=canvas)]


def listing(images: Sequence[Image]) -> bytes:
    """Return the content of `prompts.json`."""
    return (json.dumps([image.described() for image in images], indent=2, ensure_ascii=False) + "\n").encode()
