"""Read how a base model's scheduler shifts its noise levels (Esser et al. 2024, arXiv:2403.03206, section 5.3.2).

A shift s maps a noise level σ to sσ / (1 + (s - 1)σ). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from engine.core.errors import ModelError

MAX_SHIFT: Final = 1000.0
"""Limit on a shift and on its inverse, as for the task's `flow_shift`. With a much smaller shift the noise level of the
last timestep is no number in float32."""
EXPONENTIAL: Final = "exponential"
"""The usual `time_shift_type`."""
_MAX_TOKENS: Final = 1 << 24
_MAX_EXPONENT: Final = 10.0
"""Limit on the numbers from which a shift is computed, of which it may be the exponential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A fixed shift, or one that depends on the number of tokens of an image's latents."""

    fixed: float | None
    """The shift of all images; None if it depends on their size."""
    slope: float = 0.0
    intercept: float = 0.0
    is_exponential: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any], wanted: float | Literal["resolution"] | None) -> Shift:
        """Return the shift of a training.

        Args:
            config: the base model's scheduler_config.json; a missing key has Diffusers' default.
            wanted: the task's `flow_shift`.

        Raises:
            ModelError: the configuration is malformed.
        """
        if isinstance(wanted, float):
            return cls(fixed=wanted)
        if wanted == "resolution" or flag(config, "use_dynamic_shifting"):
            return cls._by_resolution(config)
        key = "flow_shift" if flag(config, "use_flow_sigmas") else "shift"
        return cls(fixed=number(config, key, 1.0, least=1 / MAX_SHIFT, most=MAX_SHIFT))

    @classmethod
    def _by_resolution(cls, config: Mapping[str, Any]) -> Shift:
        """Return the shift that Diffusers' pipelines compute (`calculate_shift`, and the schedulers' `time_shift`).

        μ is linear in the number of tokens, `base_shift` at `base_image_seq_len` and `max_shift` at
        `max_image_seq_len`; the shift is e^μ, or μ with the `time_shift_type` linear.
        """
        kind = config.get("time_shift_type", EXPONENTIAL)
        if kind not in (EXPONENTIAL, "linear"):
            raise malformed("time_shift_type", kind)
        base, most = (
            number(config, key, default, least=1, most=_MAX_TOKENS)
            for key, default in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
        )
        low, high = (
            number(config, key, default, least=-_MAX_EXPONENT, most=_MAX_EXPONENT)
            for key, default in (("base_shift", 0.5), ("max_shift", 1.15))
        )
        if most <= base:
            raise malformed("max_image_seq_len", config.get("max_image_seq_len", 4096))
        slope = (high - low) / (most - base)
        return cls(fixed=None, slope=slope, intercept=low - slope * base, is_exponential=kind == EXPONENTIAL)

    def at(self, tokens: int) -> float:
        """Return the shift for latents of so many tokens.

        Raises:
            ModelError: the scheduler's configuration gives none for this size.
        """
        if self.fixed is not None:
            return self.fixed
        exponent = self.slope * tokens + self.intercept
        # decimal, because mathematical libraries round exp differently
        found = float(Decimal(max(-100.0, min(exponent, 100.0))).exp()) if self.is_exponential else exponent
        if not 1 / MAX_SHIFT <= found <= MAX_SHIFT:
            raise ModelError(
                f"the base model's scheduler gives a shift of {found:.3g} for images of {tokens:,} tokens: choose "
                "another train_args.resolution"
            )
        return found


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Return a value that is true or false, false if it is missing. Raises ModelError."""
    found = config.get(key, False)
    if type(found) is not bool:
        raise malformed(key, found)
    return found


def number(config: Mapping[str, Any], key: str, default: float, *, least: float, most: float) -> float:
    """Return a number of at least `least` and at most `most`. Raises ModelError."""
    found = config.get(key, default)
    if type(found) not in (int, float) or not least <= found <= most:  # refuses NaN, too
        raise malformed(key, found)
    return float(found)


def malformed(key: str, value: object) -> ModelError:
    """Return the error for a value that a scheduler's configuration must not have."""
    return ModelError(f"the base model's scheduler does not load: {key} is {str(value)[:40]!r}; download it again")
