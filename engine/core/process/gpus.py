"""Count the GPUs through the driver's library, without importing torch, which takes seconds."""

from __future__ import annotations

import ctypes
from typing import Final

from engine.core.errors import DeviceError

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


def require_gpu() -> None:
    """Raise DeviceError if no CUDA device is visible."""
    if not num_gpus():
        raise no_gpu()


def no_gpu() -> DeviceError:
    """Return the error for a job that needs a GPU where none is visible."""
    return DeviceError(
        "no CUDA device is visible: start the container with --gpus all (and a recent enough NVIDIA driver), "
        "or set DEVICE=cpu to train on the CPU"
    )
