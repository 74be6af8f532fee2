"""Where a family's encoders are: on the device while something is encoded, else on the CPU."""

from __future__ import annotations

import torch

from engine.models.family import Family


class EncoderPlacement:
    """Moves a family's encoders to the device when they are first needed, and off it again."""

    def __init__(self, family: Family, device: torch.device) -> None:
        self._family = family
        self._device = device
        self._is_on_device = False

    def bring(self) -> None:
        """Have the encoders on the device; to be called before something is encoded, not for what is cached."""
        if not self._is_on_device:
            self._is_on_device = True
            self._family.move_encoders(self._device)

    def release(self) -> None:
        """Give the device's memory back: the denoiser needs it."""
        if self._is_on_device:
            self._family.move_encoders(torch.device("cpu"))
            self._is_on_device = False
