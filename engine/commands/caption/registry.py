"""The registry of the kinds of captioners."""

from __future__ import annotations

import dataclasses
from typing import Final

from engine.commands.caption import blip, image_text, tagger
from engine.commands.caption.captioner import Captioner, Kind, Options
from engine.commands.caption.source import Source
from engine.core.errors import ModelError, TaskError

KINDS: Final[dict[str, Kind]] = {
    "tagger": Kind("a tagger", tagger.reads, tagger.load, frozenset({"threshold", "exclude_tags"})),
    "blip": Kind("a caption model", blip.reads, blip.load, frozenset({"prompt", "max_tokens"})),
    "image_text": Kind("an image-text model", image_text.reads, image_text.load, frozenset({"prompt", "max_tokens"})),
}
"""The kinds of captioners. A model is of the first kind that reads it."""


def load(source: Source, options: Options) -> Captioner:
    """Load a captioner of any kind.

    Raises:
        ModelError: it is of no kind, or cannot be loaded.
        TaskError: its kind does not have one of the options.
        DeviceError: there is no such device.
    """
    kind = next((kind for kind in KINDS.values() if kind.reads(source)), None)
    if kind is None:
        raise ModelError(
            f"{source.name} is a {source.model_type()!r}: expected a tagger or a model of transformers that describes "
            "images; choose another one with --model"
        )
    for name, value in dataclasses.asdict(options).items():
        if name not in kind.takes | {"device"} and value is not None:
            raise TaskError(f"--{name.replace('_', '-')}: {source.name} is {kind.summary}, which has no such option")
    return kind.load(source, options)
