"""Draw validation images with the model in memory, without a second copy of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

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
    not_finite: Callable[[Image, str], None] = lambda image, part: None,
) -> dict[str, bytes]:
    """Draw images and clips, and return PNG and MP4 files by name. Encoders stay on the device.

    One image at a time, because an image's bits depend on its batch.

    Args:
        images: the images to draw.
        family: the model, with what is trained of it.
        resolution: width and height in pixels of images that have no size of their own.
        device: the denoiser's device.
        progress: called with the number of images done.
        check_stop: called after each denoising step; raises when the job is to stop.
        not_finite: called with an image that shows nothing, and the part that is the cause (`Drawing.not_finite`).
    """
    files: dict[str, bytes] = {}
    family.move_encoders(device)
    for done, image in enumerate(images, start=1):
        extent = image.extent(resolution)
        drawing = Drawing(
            prompt=image.prompt,
            negative_prompt=image.negative_prompt,
            guidance_scale=image.guidance_scale,
            num_inference_steps=image.num_inference_steps,
            size=extent.size,
            frames=extent.frames,
            frame_rate=image.frame_rate,
            not_finite=partial(not_finite, image),
        )
        frames = family.draw(drawing, rng.torch_generator(image.seed), check_stop)
        files[image.file] = _clip(frames, image.frame_rate) if image.is_clip else png(frames[0])
        progress(done)
    return files


def _clip(frames: npt.NDArray[np.uint8], frame_rate: float | None) -> bytes:
    from engine.evaluation.clip_file import encode_clip  # loads FFmpeg, which images do without

    assert frame_rate is not None  # `Canvas.of` gives each clip one
    return encode_clip(frames, frame_rate)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return an image as a PNG file.

    Args:
        pixels: uint8, shape (H, W, 3).
    """
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
