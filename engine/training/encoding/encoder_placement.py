"""Move a family's encoders between the device, while something is encoded, and the CPU, or free them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.models.family import Family


class EncoderPlacement:
    """Moves a family's encoders to the device when they are first needed, and back to the CPU afterwards.

    Where the text encoders do not fit beside the denoiser, those that are never trained are freed instead.
    """

    def __init__(
        self, family: Family, device: torch.device, *, loading_again: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            device: the device on which images and captions are encoded.
            loading_again: called before text encoders are loaded that were freed; None keeps them in memory.
        """
        self._family = family
        self._device = device
        self._loading_again = loading_again
        self._is_on_device = False

    @property
    def frees(self) -> bool:
        """True if text encoders are freed when they are not needed."""
        return self._loading_again is not None

    @property
    def stays(self) -> bool:
        """True if the encoders need not be moved: they are in main memory, and so is the denoiser."""
        return self._device.type == "cpu" and not self.frees

    def bring_text_encoders(self) -> None:
        """Do as `bring` does, before a caption is encoded."""
        fixed, parts = self._family.spec.fixed_text_encoders, self._family.parts
        if self._loading_again is not None and not any(name in parts for name in fixed):
            self._loading_again()
        self.bring()

    def bring(self) -> None:
        """Move the encoders to the device if necessary. Call it before encoding, but not for a cache hit."""
        if not self._is_on_device:
            self._is_on_device = True
            self._family.move_encoders(self._device)

    def release(self) -> None:
        """Free text encoders, or move all encoders to the CPU: the denoiser needs the device's memory."""
        if self.frees:
            for name in self._family.spec.fixed_text_encoders:
                self._family.parts.pop(name, None)
        if self._is_on_device:
            self._family.move_encoders(torch.device("cpu"))
            self._is_on_device = False
