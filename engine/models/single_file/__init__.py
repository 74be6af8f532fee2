"""A base model in one safetensors file, as model sites offer it: its kind and its configurations. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
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
    """Its name in messages."""
    layout: Layout
    configs: Mapping[str, Mapping[str, Any]]
    """Component -> its configuration, as in the config.json (or scheduler_config.json) of a Diffusers folder."""

    def part(self, component: str) -> Part:
        """Return the part of the file that holds a component's weights.

        Raises:
            ModelError: this layout has no such component.
        """
        try:
            return self.layout.parts[component]
        except KeyError:
            raise ModelError(f"the base model {self.name} has no {component}") from None


def inspect(path: Path, name: str, report: Callable[[str], None], without: Set[str] = frozenset()) -> SingleFile:
    """Return the kind and the configurations of a model in one file, from the file's header alone.

    Args:
        path: the file.
        name: its name in messages.
        report: called with a line about the model and what was assumed.
        without: components that come from elsewhere.

    Raises:
        ModelError: not a safetensors file, or not a complete Stable Diffusion; the message names what it is.
    """
    header = read_header(path, name)
    layout = detect(header, name, without)
    configs = configurations(header, layout, without)
    prediction = configs["scheduler"]["prediction_type"]
    source = "as the file says"
    if said_prediction(header) is None:
        source = "assumed, since the file does not say; train_args.prediction_type can name another"
    report(f"base model: a single file of {layout.title} that predicts {prediction} ({source})")
    return SingleFile(path=path, name=name, layout=layout, configs=configs)
