"""Validation images, from the trained parts in memory: never a second copy of the model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from . import rng
from .families.base import Family

NUM_INFERENCE_STEPS: Final = 30
GUIDANCE_SCALE: Final = 7.5
PROMPTS_FILE: Final = "prompts.json"


@dataclass(frozen=True, slots=True)
class Image:
    """What one validation image shows; a line of `prompts.json`."""

    file: str
    prompt: str
    seed: int
    """Of a CPU `torch.Generator`: Diffusers draws the same image from the same prompt, seed and LoRA."""


def plan_images(prompts: list[str], seed: int) -> list[Image]:
    """The images for these prompts: the same through a whole chain."""
    seeds = rng.words(seed, "validation seed", 0, len(prompts))[:, 0]
    return [Image(f"{i}.png", prompt, int(seeds[i]) >> 32) for i, prompt in enumerate(prompts)]


def draw(
    images: Sequence[Image], family: Family, *, resolution: int, device: torch.device, progress: Callable[[int], None]
) -> dict[str, bytes]:
    """PNG files of `resolution` pixels square, by name.

    One prompt at a time, because an image's bits depend on the batch it is made in.
    """
    files: dict[str, bytes] = {}
    family.move_encoders(device)
    pipeline = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    for done, image in enumerate(images, start=1):
        files[image.file] = _png(_draw(pipeline, image, resolution))
        progress(done)
    return files


def listing(images: Sequence[Image]) -> bytes:
    """The contents of `prompts.json`."""
    return (json.dumps([asdict(image) for image in images], indent=2, ensure_ascii=False) + "\n").encode()


@torch.no_grad()
def _draw(pipeline: Any, image: Image, resolution: int) -> Any:
    return pipeline(
        image.prompt,
        height=resolution,
        width=resolution,
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=rng.torch_generator(image.seed),
    ).images[0]


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
