"""A whole model in one safetensors file, as model sites offer it: what it is, how it is configured. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.errors import ModelError
from engine.models.single_file.header import read_header
from engine.models.single_file.layouts import Layout, Part, configurations, detect, said_prediction

__all__ = ["SingleFile", "inspect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """A base model in one file."""

    path: Path
    name: str
    """What messages call it."""
    layout: Layout
    configs: Mapping[str, Mapping[str, Any]]
    """Component -> its configuration, as Diffusers' folder would have it in config.json (or scheduler_config.json)."""

    def part(self, component: str) -> Part:
        """Where a component's weights are.

        Raises:
            ModelError: this layout has no such component.
        """
        try:
            return self.layout.parts[component]
        except KeyError:
            raise ModelError(f"the base model {self.name} holds no {component}") from None


def inspect(path: Path, name: str, report: Callable[[str], None]) -> SingleFile:
    """What a file holds, by its header alone.

    Args:
        path: the file.
        name: what messages call it.
        report: called with a line that says what it is, and what had to be assumed.

    Raises:
        ModelError: no safetensors file, or none that holds a whole Stable Diffusion; says what it is.
    """
    header = read_header(path, name)
    layout = detect(header, name)
    configs = configurations(header, layout)
    prediction = configs["scheduler"]["prediction_type"]
    source = "as the file says"
    if said_prediction(header) is None:
        source = "assumed, as the file does not say: train_args.prediction_type names another"
    report(f"base model: a single file of {layout.title} that predicts {prediction} ({source})")
    return SingleFile(path=path, name=name, layout=layout, configs=configs)
