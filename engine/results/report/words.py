"""The words for what a training method trains, in messages and in the report. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words for what is trained."""

    noun: str
    """The trained thing, with its article: "a LoRA"."""
    many: str
    """The weights of several steps: "LoRAs"."""
    new: str
    """The start of a training without a checkpoint: "a new LoRA"."""
    trained: str
    """The thing with which, or without which, an image is drawn: "the LoRA"."""
    title: str
    """The kind of training, as the beginning of a title: "LoRA training"."""
    event: str
    """The event in `progress.jsonl` when the weights of a step are kept."""
