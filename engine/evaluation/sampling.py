"""Draw validation images with the model in memory, without a second copy of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from engine.core import rng
from engine.evaluation.drawings import Image
from engine.models.family import Drawing, Family


def draw(
    images: Sequence[Image],
    family: Family,
    *,
    resolution: int,
    device: torch.device,
    progress: Callable[[int], object],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """Draw images, and return PNG files by name. Encoders stay on the device.

    One image at a time, because an image's bits depend on its batch.

    Args:
        images: the images to draw.
        family: the model, with what is trained of it.
        resolution: width and height in pixels of images that have no size of their own.
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
            size=image.extent(resolution).size,
        )
        frames = family.draw(drawing, rng.torch_generator(image.seed), check_stop)
        files[image.file] = _png(frames[0])
        progress(done)
    return files


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
