"""Count the GPUs through the driver's library, without importing torch, which takes seconds."""

from __future__ import annotations

import ctypes
from typing import Final

_LIBRARY: Final = "libcuda.so.1"
_SUCCESS: Final = 0


def num_gpus() -> int:
    """Return the number of CUDA devices, with CUDA_VISIBLE_DEVICES applied; 0 without a driver."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != _SUCCESS or driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return 0
    return count.value
