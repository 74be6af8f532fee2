"""Import all that a job needs in a process that never trains, so that children forked from it need not."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from engine.commands.train import importing, quiet_libraries

_ALONE: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's, which would start threads; the job computes nothing with it
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # libraries ask for GPUs: without opening CUDA
}
"""Environment variables for the time of the imports, so that the process can be forked."""


def preload() -> None:
    """Import the libraries and all of this program that needs torch. Starts no thread, and does not open CUDA."""
    quiet_libraries()
    with importing(), _environment():
        from engine.models.registry import FAMILIES
        from engine.training.methods.registry import METHODS

        for module in [spec.module for spec in FAMILIES.values()] + [spec.module for spec in METHODS.values()]:
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
