"""Move a family's encoders between the device, while something is encoded, and the CPU."""

from __future__ import annotations

import torch

from engine.models.family import Family


class EncoderPlacement:
    """Moves a family's encoders to the device when they are first needed, and back to the CPU afterwards."""

    def __init__(self, family: Family, device: torch.device) -> None:
        self._family = family
        self._device = device
        self._is_on_device = False

    def bring(self) -> None:
        """Move the encoders to the device if necessary. Call it before encoding, but not for a cache hit."""
        if not self._is_on_device:
            self._is_on_device = True
            self._family.move_encoders(self._device)

    def release(self) -> None:
        """Move the encoders to the CPU: the denoiser needs the device's memory."""
        if self._is_on_device:
            self._family.move_encoders(torch.device("cpu"))
            self._is_on_device = False
