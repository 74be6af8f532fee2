"""Import everything that tasks need once, and run each task in a child forked from this process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from engine.commands import train
from engine.core.process import forks
from engine.core.process.forks import Child
from engine.core.process.startup import ENTRYPOINT

_ALONE: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's, which would start threads; the job computes nothing with it
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # libraries ask for GPUs: without opening CUDA
}
"""Environment variables for the time of the imports, so that the process can be forked."""


def preload() -> None:
    """Import the libraries and all of this program that needs torch. Starts no thread, and does not open CUDA."""
    train.quiet_libraries()
    with train.importing(), _environment():
        from engine.models.registry import FAMILIES
        from engine.training.methods.registry import METHODS

        modules = [family.module for family in FAMILIES.values()] + [method.module for method in METHODS.values()]
        for module in ("engine.job.run", *modules):
            importlib.import_module(module)


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ALONE}
    os.environ.update(_ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def start_task(flags: list[str], *, prepare: Callable[[], None] | None = None) -> Child:
    """Start a task with these flags.

    It is in its own session, so that a signal to the process group reaches it only once: a second one would kill it.

    Args:
        flags: of the training.
        prepare: called in the child before anything else.
    """
    return forks.start(ENTRYPOINT, flags, lambda: train.main(flags, os.environ), prepare=prepare)


def exit_code(code: int) -> int:
    """Return a child's exit code; for one that a signal has killed that of a shell, such as 137 for SIGKILL."""
    return 128 - code if code < 0 else code
