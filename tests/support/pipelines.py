"""Diffusers' pipelines, as a user of a published file calls them, with the bits of the program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the program, so that sums have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_own_memory(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Copy the weights: those in a file's memory map are not aligned as others are, which can change the last bit."""
    pipe.set_progress_bar_config(disable=True)
    for module in [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return pipe


@contextlib.contextmanager
def complaints_of(*names: str) -> Iterator[list[str]]:
    """Collect what these libraries warn of."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield lines
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
