"""Move a family's encoders between the device, while something is encoded, and the CPU, or free them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.models.family import Family


class EncoderPlacement:
    """Moves a family's encoders to the device when they are first needed, and back to the CPU afterwards.

    Where the text encoders do not fit beside the denoiser, those that are never trained are freed instead. Where all
    encoders fit beside it while it trains, they stay on the device at first.
    """

    def __init__(
        self,
        family: Family,
        device: torch.device,
        *,
        loading_again: Callable[[], None] | None = None,
        stays: bool = False,
    ) -> None:
        """
        Args:
            device: the device on which images and captions are encoded.
            loading_again: called before text encoders are loaded that were freed; None keeps them in memory.
            stays: whether encoders that are on the device stay there until `end_stay` is called.
        """
        self._family = family
        self._device = device
        self._loading_again = loading_again
        self._stays = stays
        self._is_on_device = False

    @property
    def frees(self) -> bool:
        """True if text encoders are freed when they are not needed."""
        return self._loading_again is not None

    @property
    def stays(self) -> bool:
        """True if `release` leaves the encoders on the device."""
        return self._stays

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
        """Free text encoders, or move all encoders to the CPU: the denoiser needs the device's memory.

        Encoders that stay on the device for now are left there.
        """
        if self._stays:
            return
        if self.frees:
            for name in self._family.spec.fixed_text_encoders:
                self._family.parts.pop(name, None)
        if self._is_on_device:
            self._family.move_encoders(torch.device("cpu"))
            self._is_on_device = False

    def end_stay(self) -> None:
        """Let `release` move the encoders from now on."""
        self._stays = False
