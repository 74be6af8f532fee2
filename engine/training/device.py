"""Open the device."""

from __future__ import annotations

import torch

from engine.core.errors import DeviceError, first_line
from engine.core.process.gpus import no_gpu
from engine.task.settings import Settings
from engine.training import determinism


def open_device(settings: Settings, mixed_precision: str) -> torch.device:
    """Open the device of the settings, and make torch deterministic on it.

    Raises:
        DeviceError: there is no such device, it cannot be used, or it does not support the precision.
    """
    determinism.switch_on(settings.cpu_threads)
    if settings.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise no_gpu()
    # A launcher may show each process only its own GPU, or all of them.
    device = torch.device("cuda", settings.place.local_rank % torch.cuda.device_count())
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise DeviceError(f"the GPU cannot be used: {first_line(error)}") from error
    if mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f'{torch.cuda.get_device_name()} has no bf16; use mixed_precision "fp16" or "no"')
    return device
