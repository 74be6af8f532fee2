"""The interface of a kind of captioner: the function that captions an image, its options, and its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.commands.caption.source import Source

if TYPE_CHECKING:
    from PIL.Image import Image

Captioner = Callable[["Image"], str]
"""Returns the caption of an image in RGB; an empty one if there is nothing to say. Raises UnreadableImage for an image
whose shape the model cannot take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of all kinds; None is the kind's default."""

    device: str | None = None
    """`cuda` or `cpu`; None is `cuda` where there is one."""
    prompt: str | None = None
    max_tokens: int | None = None
    threshold: float | None = None
    """A tag is written if its probability is above this."""
    exclude_tags: frozenset[str] | None = None
    """Tags that are not written, spelled with blanks."""


class Kind(NamedTuple):
    """A row of `KINDS`."""

    summary: str
    """The kind, in words for messages."""
    reads: Callable[[Source], bool]
    """Returns whether a model is of this kind."""
    load: Callable[[Source, Options], Captioner]
    """Loads a model. Raises ModelError with advice if it is incomplete, malformed or damaged."""
    takes: frozenset[str]
    """The names of the `Options` that it knows, besides `device`."""
