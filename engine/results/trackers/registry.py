"""The registry of trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from engine.core.errors import TaskError
from engine.results.trackers.console import ConsoleTracker
from engine.results.trackers.jsonl import follow_training
from engine.results.trackers.kubeflow import Kubeflow
from engine.results.trackers.mlflow import MLflow
from engine.results.trackers.service import Followed, Service
from engine.results.trackers.tensorboard import TensorBoard
from engine.results.trackers.tracker import TrackedTraining, Tracker, Trackers
from engine.results.trackers.wandb import WeightsAndBiases

TRACKERS: Final[dict[str, Callable[[TrackedTraining], Tracker]]] = {
    "jsonl": follow_training,
    "console": ConsoleTracker,
}
"""Functions that open a tracker, by its name. Every job opens all of them."""


class ServiceRow(NamedTuple):
    """A tracking service that the operator may choose."""

    package: str
    """The package that it needs: one of `requirements-trackers.txt`, or a module of Python itself."""
    open: Callable[[Followed], Service]


SERVICES: Final[dict[str, ServiceRow]] = {
    "tensorboard": ServiceRow("tensorboard", TensorBoard),
    "wandb": ServiceRow("wandb", WeightsAndBiases),
    "mlflow": ServiceRow("mlflow", MLflow),
    "kubeflow": ServiceRow("ssl", Kubeflow),
}
"""The services of `--trackers`, by name."""


def require_services(names: Iterable[str]) -> None:
    """Check that these services exist and are installed, without importing them.

    Raises:
        TaskError: one does not or is not.
    """
    for name in names:
        if name not in SERVICES:
            raise TaskError(f"--trackers or TRACKERS names {name!r}: expected some of {', '.join(SERVICES)}")
        package = SERVICES[name].package
        if importlib.util.find_spec(package) is None:
            raise TaskError(
                f"--trackers or TRACKERS names {name}, but the package {package} is not installed: run "
                "pip install --no-deps -r requirements-trackers.txt, or build the image with --build-arg TRACKERS=1"
            )


@contextmanager
def tracked(training: TrackedTraining, *, is_first: bool) -> Iterator[Trackers]:
    """Open all trackers while the block trains. A process that is not the job's first one opens none."""
    trackers = Trackers()
    for name, opener in TRACKERS.items() if is_first else ():
        trackers.open(name, opener, training)
    try:
        yield trackers
    finally:
        trackers.close()
