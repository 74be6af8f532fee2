"""Draw the baseline's images, or take them from the cache: all trainings of one kind on a base model have the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, Final

import torch

from engine.evaluation.drawings import Image
from engine.evaluation.validation_images import Drawn
from engine.task.identity import canonical
from engine.task.task import Task
from engine.training.encoding.cache import EncodingCache, cache_key

_WITHOUT_EFFECT: Final = {"model", "dataset", "validation", "train_args", "transforms", "seed"}
"""The task's keys on which the bits do not depend, or that `conditions` and the images' own keys stand for."""


def conditions(task: Task) -> dict[str, Any]:
    """Return the keys of a task on which the baseline's bits depend, besides the base model, the image and the device.

    Without the training the model still computes as it was prepared for it: with quantised weights, perhaps, or with a
    text encoder in float32. So all keys count but for those that are known to have no effect.
    """
    args, quantization = task.train_args, task.model.quantization
    return {
        **({"quantization": quantization} if quantization else {}),
        **{name: value for name, value in canonical(task).items() if name not in _WITHOUT_EFFECT},
        "train_text_encoder": args.train_text_encoder,
        "prediction_type": args.prediction_type,
        "zero_terminal_snr": args.zero_terminal_snr,
        "flow_shift": args.flow_shift,
        "guidance_scale": args.guidance_scale,
        "max_caption_tokens": task.dataset.max_caption_tokens,
        "resolution": args.resolution,
    }


def drawn_or_cached(
    images: Sequence[Image],
    *,
    cache: EncodingCache,
    conditions: Mapping[str, Any],
    baseline: Callable[[], AbstractContextManager[None]],
    draw: Callable[[list[Image]], Drawn],
) -> dict[str, bytes]:
    """Return the baseline's images as files by name; those that the cache lacks are drawn and stored.

    Images that show nothing are not stored, so that the next job says so, too.

    Args:
        images: the images.
        cache: the cache of the base model, on this device.
        conditions: what else the bits depend on; see `conditions`.
        baseline: `Trainable.baseline`.
        draw: draws images with the model as it is.
    """
    keys = {image.file: _key(image, conditions) for image in images}
    found = {file: tensors["file"].numpy().tobytes() for file, key in keys.items() if (tensors := cache.load(key))}
    missing = [image for image in images if image.file not in found]
    if missing:
        with baseline():
            drawn = draw(missing)
        for file, data in drawn.files.items():
            if file not in drawn.flawed:
                cache.store(keys[file], {"file": torch.frombuffer(bytearray(data), dtype=torch.uint8)})
        cache.trim()
        found |= drawn.files
    return {file: found[file] for file in keys}


def _key(image: Image, conditions: Mapping[str, Any]) -> str:
    drawing = {name: value for name, value in asdict(image).items() if name != "file"}
    parts = [drawing, dict(conditions)]
    if image.is_clip:
        from engine.evaluation.clip_file import ENCODER  # loads FFmpeg, which images do without

        parts.append(ENCODER)
    return cache_key("baseline's image", *parts)
