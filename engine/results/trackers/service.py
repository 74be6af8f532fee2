"""The protocol of tracking services. A service is one file in this folder and one row in `registry.py`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

SERVICE_PROCESS: Final = "tracker"
"""The name of the program that follows a training for one service."""

Message = Mapping[str, Any]
"""A JSON object: `follow` (the fields of `Followed`), then `step` with `values` or `pictures`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The training that a service follows."""

    run: str
    """The run's identity: 16 hexadecimal digits, the same for all tasks of a chain and after every interruption."""
    name: str
    """The run's name for a person: base model and dataset."""
    folder: str
    """The output folder."""
    step: int
    """The global step at which this process continues. Later steps that the service knows already are trained again,
    with the same numbers."""
    start_step: int
    """The global step at which the task begins."""
    stop_step: int
    """The global step after which the task ends."""
    visits_per_step: int
    task: Mapping[str, Any]
    """The task as JSON, without keys at their defaults."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A validation image."""

    name: str
    """The name of its file without the ending."""
    prompt: str
    png: bytes


class Service(Protocol):
    """A tracking service, in the process of `service_process.py`. It may raise: the job warns, and calls it no more."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receive numbers of a step, by name. Steps may repeat after an interruption; the numbers are the same."""

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        """Receive the validation images after a step."""

    def close(self) -> None:
        """Send everything that is left."""
