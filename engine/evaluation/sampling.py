"""Draw validation images with the model in memory, without a second copy of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from engine.core import rng
from engine.models.family import Drawing, Family
from engine.models.spec import DrawingDefaults
from engine.task.task import Validation

PROMPTS_FILE: Final = "prompts.json"
_UNSAID: Final = DrawingDefaults(guidance_scale=7.5, num_inference_steps=30)
"""The settings of an image whose entry in `prompts.json` does not have them, whatever the family."""


@dataclass(frozen=True, slots=True)
class Image:
    """A validation image's prompt, seed and options, with which Diffusers draws the same from the same LoRA."""

    file: str
    prompt: str
    seed: int
    """The seed of a CPU `torch.Generator`."""
    negative_prompt: str | None = None
    guidance_scale: float = _UNSAID.guidance_scale
    num_inference_steps: int = _UNSAID.num_inference_steps

    def described(self) -> dict[str, Any]:
        """Return an entry of `prompts.json`. It has the last three options only if they are not at their defaults."""
        values = {part.name: (getattr(self, part.name), part.default) for part in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def plan_images(
    prompts: Sequence[str], seed: int, wanted: Validation | None = None, drawing: DrawingDefaults = _UNSAID
) -> list[Image]:
    """Return the images for these prompts. They are the same through a whole chain.

    Args:
        prompts: one for each image.
        seed: the task's seed, from which images get theirs if `wanted` has none.
        wanted: the task's options of drawing; None is none.
        drawing: the guidance and the steps of all images (`Job.drawing`).
    """
    wanted = wanted or Validation()
    drawn = rng.words(seed, "validation seed", 0, len(prompts))[:, 0]
    return [
        Image(
            f"{i}.png",
            prompt,
            int(drawn[i]) >> 32 if wanted.seed is None else wanted.seed + i,
            wanted.negative_prompt,
            drawing.guidance_scale,
            drawing.num_inference_steps,
        )
        for i, prompt in enumerate(prompts)
    ]


def draw(
    images: Sequence[Image],
    family: Family,
    *,
    resolution: int,
    device: torch.device,
    progress: Callable[[int], object],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """Draw images of `resolution` x `resolution` pixels, and return PNG files by name. Encoders stay on the device.

    One image at a time, because an image's bits depend on its batch.

    Args:
        images: the images to draw.
        family: the model, with what is trained of it.
        resolution: width and height in pixels.
        device: the denoiser's device.
        progress: called with the number of images done.
        check_stop: called after each denoising step; raises when the job is to stop.
    """
    files: dict[str, bytes] = {}
    family.move_encoders(device)
    for done, image in enumerate(images, start=1):
        drawing = Drawing(
            prompt=image.prompt,
            negative_prompt=image.negative_prompt,
            guidance_scale=image.guidance_scale,
            num_inference_steps=image.num_inference_steps,
            size=(resolution, resolution),
        )
        frames = family.draw(drawing, rng.torch_generator(image.seed), check_stop)
        files[image.file] = _png(frames[0])
        progress(done)
    return files


def listing(images: Sequence[Image]) -> bytes:
    """Return the content of `prompts.json`."""
    return (json.dumps([image.described() for image in images], indent=2, ensure_ascii=False) + "\n").encode()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
