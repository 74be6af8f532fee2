"""The noise schedule of diffusion training, and the functions that depend on it: noising, targets, weights, errors.

The notation is that of Ho et al. 2020 (arXiv:2006.11239): a clean sample x₀, noise ε, and the cumulative product ᾱ of
a noise schedule. Samples have any rank; their first axis is the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

from engine.core.errors import ModelError
from engine.models.objectives.diffusion.schedulers import SHIFTED
from engine.models.objectives.huber import Errors, pseudo_huber
from engine.models.objectives.objective import Huber, TargetType

_BETA_SCHEDULES: Final = ("linear", "scaled_linear", "squaredcos_cap_v2")
# The keys that define ᾱ in a scheduler's configuration; all Diffusers schedulers of Stable Diffusion models share them.
_BETA_KEYS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """The share of the sample and of the noise in noisy latents, for each timestep."""

    alphas_cumprod: torch.Tensor
    """ᾱ, float32, shape (T,), falling from nearly 1 to nearly (or, with zero terminal SNR, exactly) 0."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, zero_terminal_snr: bool = False) -> Self:
        """Return the schedule of a Diffusers scheduler's configuration, on the CPU.

        With `zero_terminal_snr`, √ᾱ is shifted and scaled so that its last value is 0 and its first stays (Lin et al.
        2023, arXiv:2305.08891, section 3.1 and algorithm 1). The schedulers `SHIFTED` divide ᾱ before that by
        s + (1 - s)·ᾱ, which divides the signal-to-noise ratio by s, their `snr_shift_scale`.

        Raises:
            ModelError: an unsupported beta schedule, or malformed values.
        """
        betas = {key: config[key] for key in _BETA_KEYS if key in config}
        if zero_terminal_snr:
            betas["rescale_betas_zero_snr"] = True
        if betas.get("trained_betas") is None and betas.get("beta_schedule", "linear") not in _BETA_SCHEDULES:
            raise ModelError(
                f"the base model's scheduler has beta_schedule {betas['beta_schedule']!r}; "
                f"{', '.join(_BETA_SCHEDULES)} can be trained"
            )
        try:
            if config.get("_class_name") in SHIFTED:
                shift = {key: config[key] for key in ("snr_shift_scale",) if key in config}
                scheduler = CogVideoXDDIMScheduler.from_config(betas | shift)
            else:
                scheduler = DDPMScheduler.from_config(betas)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"the base model's scheduler configuration is malformed: {error}") from error
        return cls(scheduler.alphas_cumprod.to(torch.float32))

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps T: timesteps are 0 … T - 1."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> Self:
        """Return the schedule on another device; timesteps and samples must be on the same device."""
        return type(self)(self.alphas_cumprod.to(device))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return √ᾱ·x₀ + √(1-ᾱ)·ε (Ho et al. 2020, eq. 4) in the shape and dtype of `latents`.

        It is computed in float32 or wider.

        Args:
            latents: x₀, floating point, shape (B, …).
            noise: ε, like `latents`.
            timesteps: int64, shape (B,).
        """
        signal, spread = self._scales(timesteps, latents.ndim)
        return (signal * latents + spread * noise).to(latents.dtype)

    def target(
        self, prediction_type: TargetType, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return the target: the noise ε, or the velocity √ᾱ·ε - √(1-ᾱ)·x₀ (Salimans & Ho 2022, arXiv:2202.00512).

        Arguments and result have the shapes and dtypes of `add_noise`.
        """
        if prediction_type == "epsilon":
            return noise
        signal, spread = self._scales(timesteps, latents.ndim)
        return (signal * noise - spread * latents).to(latents.dtype)

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the signal-to-noise ratio ᾱ / (1-ᾱ): float32, shape (B,); 0 at the end with zero terminal SNR."""
        alphas_cumprod = self.alphas_cumprod[timesteps]
        return alphas_cumprod / (1.0 - alphas_cumprod)

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float, prediction_type: TargetType) -> torch.Tensor:
        """Return loss weights that limit the weight of timesteps with little noise: float32, shape (B,).

        Hang et al. 2023 (arXiv:2303.09556), section 3.4: min(SNR, γ) / SNR for a noise target and
        min(SNR, γ) / (SNR + 1) for a velocity target.
        """
        snr, gamma = self.snr(timesteps), min(gamma, torch.finfo(torch.float32).max)
        if prediction_type == "epsilon":
            # This is min(SNR, γ) / SNR, with its limit 1 at SNR = 0 instead of 0 / 0.
            return torch.clamp(gamma / snr, max=1.0)
        return torch.clamp(snr, max=gamma) / (snr + 1.0)

    def errors(self, timesteps: torch.Tensor, huber: Huber | None) -> Errors:
        """Return the function from differences to errors at these timesteps (int64, shape (B,)).

        `huber=None` is the squared error; the others are those of `pseudo_huber`.
        """
        if huber is None:
            return torch.square
        return pseudo_huber(self.huber_thresholds(timesteps, huber), huber.kind)

    def huber_thresholds(self, timesteps: torch.Tensor, huber: Huber) -> torch.Tensor:
        """Return the Huber threshold c of each sample: float32, shape (B,).

        `constant`: c. `exponential`: c^(t/T), falling from 1 to c (Khrapov et al. 2024, section 3.3). `snr`: with
        σ = √((1-ᾱ)/ᾱ), (1 - c) / (1 + σ)² + c: 1 without noise, c at zero SNR (sd-scripts' default).
        """
        if huber.schedule == "constant":
            return torch.full(timesteps.shape, huber.c, dtype=torch.float32, device=timesteps.device)
        if huber.schedule == "exponential":
            return torch.exp(math.log(huber.c) / self.num_train_timesteps * timesteps.to(torch.float32))
        alphas_cumprod = self.alphas_cumprod[timesteps]
        sigmas = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()
        return (1.0 - huber.c) / (1.0 + sigmas).square() + huber.c

    def _scales(self, timesteps: torch.Tensor, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return √ᾱ and √(1-ᾱ) of each sample, in a shape that broadcasts to samples with `ndim` axes."""
        alphas_cumprod = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (ndim - 1))
        return alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
