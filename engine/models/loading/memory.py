"""Give the weights of a module memory of their own, in place of their file's memory map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

_ALIGNMENT: Final = 64
"""The alignment of torch's own allocations, in bytes."""


def own_memory(module: torch.nn.Module) -> None:
    """Copy every tensor out of its file's memory map, where its alignment can change the bits of a kernel's result.

    Tensors that were converted to another dtype already have memory of their own, aligned by torch.
    """
    is_mapped = _file_maps()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() % _ALIGNMENT or is_mapped(tensor.data_ptr()):
            tensor.data = tensor.data.clone()


def _file_maps() -> Callable[[int], bool]:
    """Return a test for addresses in a file's memory map (proc(5), maps); without /proc it is always true."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return lambda address: True
    files = [line.split(" ", 1)[0].split("-") for line in lines if line.split(None, 5)[4] != "0"]  # it has an inode
    starts, ends = ([int(place[side], 16) for place in files] for side in (0, 1))

    def is_mapped(address: int) -> bool:
        number = bisect_right(starts, address) - 1  # the maps are sorted and do not overlap
        return number >= 0 and address < ends[number]

    return is_mapped
