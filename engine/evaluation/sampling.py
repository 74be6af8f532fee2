"""Validation images, from the trained parts in memory: never a second copy of the model."""

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
from engine.task.task import Validation

PROMPTS_FILE: Final = "prompts.json"
_DEFAULT: Final = Validation()


@dataclass(frozen=True, slots=True)
class Image:
    """What one validation image shows, and how Diffusers draws the same from the same LoRA."""

    file: str
    prompt: str
    seed: int
    """Of a CPU `torch.Generator`."""
    negative_prompt: str | None = _DEFAULT.negative_prompt
    guidance_scale: float = _DEFAULT.guidance_scale
    num_inference_steps: int = _DEFAULT.num_inference_steps

    def described(self) -> dict[str, Any]:
        """A line of `prompts.json`: the last three only where they are not the default."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if name in _TOLD or value != getattr(_DEFAULT, name)}


_TOLD: Final = ("file", "prompt", "seed")


def plan_images(prompts: Sequence[str], seed: int, wanted: Validation = _DEFAULT) -> list[Image]:
    """The images for these prompts: the same through a whole chain.

    Args:
        prompts: one for each image.
        seed: the task's, for an image's seed where `wanted` has none.
        wanted: how they are drawn.
    """
    drawn = rng.words(seed, "validation seed", 0, len(prompts))[:, 0]
    return [
        Image(
            f"{i}.png",
            prompt,
            int(drawn[i]) >> 32 if wanted.seed is None else wanted.seed + i,
            wanted.negative_prompt,
            wanted.guidance_scale,
            wanted.num_inference_steps,
        )
        for i, prompt in enumerate(prompts)
    ]


def draw(
    images: Sequence[Image],
    family: Family,
    *,
    resolution: int,
    device: torch.device,
    progress: Callable[[int], None],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """PNG files of `resolution` pixels square, by name. The encoders are left on the device.

    One prompt at a time, because an image's bits depend on the batch it is made in.

    Args:
        images: to draw.
        family: the model, with its adapter.
        resolution: height and width in pixels.
        device: that the denoiser is on.
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
    """The contents of `prompts.json`."""
    return (json.dumps([image.described() for image in images], indent=2, ensure_ascii=False) + "\n").encode()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
