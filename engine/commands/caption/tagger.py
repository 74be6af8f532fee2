"""Taggers: ONNX models with a list of tags, in the form of SmilingWolf's WD taggers (`SmilingWolf/wd-vit-tagger-v3`).

Such a model takes one square image and returns the probability of each tag in `selected_tags.csv`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from engine.commands.caption.captioner import Captioner, Options
from engine.commands.caption.source import TAGS, Source, captioning, loading, refusal
from engine.commands.caption.tags import Tag, read_tags
from engine.core.errors import DeviceError, TaskError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL: Final = "model.onnx"
THRESHOLD: Final = 0.35
"""The usual threshold of the WD taggers, from SmilingWolf's demonstration and kohya's script."""
_MAX_SIDE: Final = 4096

Floats = npt.NDArray[np.float32]


def reads(source: Source) -> bool:
    """Return whether a model has a list of tags."""
    return (source.folder / TAGS).is_file()


def load(source: Source, options: Options) -> Captioner:
    """Load a tagger, which runs on the CPU.

    Raises:
        TaskError: onnxruntime is not installed.
        DeviceError: it is asked to run on a GPU.
        ModelError: it cannot be loaded, or its model and its list of tags do not belong together.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise TaskError(
            f"{source.name} is a tagger, for which the package onnxruntime is not installed: run "
            "pip install --no-deps -r requirements-tagger.txt, or build the image with --build-arg TAGGER=1"
        )
    if options.device == "cuda":
        raise DeviceError("--device is cuda, but taggers run on the CPU; leave it out")
    folder = source.download((MODEL, TAGS))
    try:
        tags = read_tags(folder / TAGS)
    except (OSError, ValueError) as error:
        raise refusal(source.name, f"{TAGS}: {first_line(error)}") from error
    with loading(source.name):
        session = _session(folder / MODEL)
        side = _side(session, len(tags))
    name = session.get_inputs()[0].name
    threshold = THRESHOLD if options.threshold is None else options.threshold
    excluded = options.exclude_tags or frozenset()

    def caption(image: Image) -> str:
        with captioning(source.name):
            (found,) = session.run(None, {name: pixels(image, side)})
            return ", ".join(chosen(tags, _probabilities(found, len(tags)), threshold, excluded))

    return caption


def pixels(image: Image, side: int) -> Floats:
    """Return an RGB image as a tagger takes it: BGR, 0 to 255, float32, shape (1, side, side, 3).

    It is resized (bicubic) to fit, and centred on a white square. It is padded after it is resized: the square around a
    very long image could not be held in memory.
    """
    from PIL import Image as Images

    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Images.new("RGB", (side, side), "white")
    resized = image.resize((width, height), Images.Resampling.BICUBIC)
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[None, :, :, ::-1])


def chosen(tags: Sequence[Tag], probabilities: Floats, threshold: float, excluded: frozenset[str]) -> list[str]:
    """Return the general tags and characters above the threshold: the most probable first, ties by name."""
    found = [
        (-float(probability), tag.name)
        for tag, probability in zip(tags, probabilities, strict=True)
        if tag.is_written and probability > threshold and tag.name not in excluded
    ]
    return [name for _, name in sorted(found)]


def _session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # it also raises the errors that it logs
    # By default it counts all cores of the machine, also in a container that has a few of them.
    settings.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _side(session: Any, num_tags: int) -> int:
    """Return the side of the square images that a model takes, in pixels. Raises ValueError if it is no tagger."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    side = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0
    is_square = 0 < side <= _MAX_SIDE and shape[1:] == [side, side, 3]
    if not is_square or inputs[0].type != "tensor(float)" or len(outputs) != 1:
        raise ValueError(f"{MODEL} does not take one square image (batch, side, side, 3) in float32")
    width = list(outputs[0].shape or [None])[-1]
    if isinstance(width, int) and width != num_tags:
        raise ValueError(f"{TAGS} has {num_tags:,} tags, but {MODEL} returns {width:,} values")
    return side


def _probabilities(found: Any, num_tags: int) -> Floats:
    """Return a model's output, shape (num_tags,). Raises ValueError if it has another shape or no probabilities."""
    values: Floats = np.asarray(found, dtype=np.float32)
    if values.shape != (1, num_tags):
        raise ValueError(f"{TAGS} has {num_tags:,} tags, but {MODEL} returns values of shape {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{MODEL} returns values that are not probabilities")
    return values.reshape(-1)
