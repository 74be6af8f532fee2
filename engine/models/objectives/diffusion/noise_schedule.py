"""The noise schedule of diffusion training, with what follows from it: noising, targets, loss weights, errors.

The notation is that of Ho et al. 2020 (arXiv:2006.11239): a clean sample x₀, noise ε, and the cumulative product ᾱ of
a noise schedule. Samples are of any rank; only their first axis, the batch, means something here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from diffusers import DDPMScheduler

from engine.core.errors import ModelError
from engine.models.objectives.objective import Huber
from engine.task.task import PredictionType

_BETA_SCHEDULES: Final = ("linear", "scaled_linear", "squaredcos_cap_v2")
# What defines ᾱ in a scheduler's configuration; all Diffusers schedulers of Stable Diffusion models name these alike.
_BETA_KEYS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


Errors = Callable[[torch.Tensor], torch.Tensor]
"""Differences, float32, shape (B, …) -> each one's error, the same shape."""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """How much of a sample is left at each timestep."""

    alphas_cumprod: torch.Tensor
    """ᾱ, float32, shape (T,), falling from nearly 1 to nearly (or, with zero terminal SNR, exactly) 0."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, zero_terminal_snr: bool = False) -> Self:
        """The schedule that any Diffusers scheduler's configuration describes, on the CPU.

        With `zero_terminal_snr`, √ᾱ is shifted and scaled so that its last value is 0 and its first stays (Lin et al.
        2023, arXiv:2305.08891, section 3.1 and algorithm 1).

        Raises:
            ModelError: a beta schedule that no Stable Diffusion model is trained with, or malformed values.
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
            scheduler = DDPMScheduler.from_config(betas)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"the base model's scheduler configuration is malformed: {error}") from error
        return cls(scheduler.alphas_cumprod.to(torch.float32))

    @property
    def num_train_timesteps(self) -> int:
        """T: timesteps are 0 … T - 1."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> Self:
        """The same schedule on another device; timesteps and samples must be there too."""
        return type(self)(self.alphas_cumprod.to(device))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """√ᾱ·x₀ + √(1-ᾱ)·ε (Ho et al. 2020, eq. 4): the shape and dtype of `latents`, computed in float32 or wider.

        Args:
            latents: x₀, floating point, shape (B, …).
            noise: ε, like `latents`.
            timesteps: int64, shape (B,).
        """
        signal, spread = self._scales(timesteps, latents.ndim)
        return (signal * latents + spread * noise).to(latents.dtype)

    def target(
        self, prediction_type: PredictionType, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser is to predict: the noise, or √ᾱ·ε - √(1-ᾱ)·x₀ (Salimans & Ho 2022, arXiv:2202.00512).

        Arguments as in `add_noise`, and the same shape and dtype out.
        """
        if prediction_type == "epsilon":
            return noise
        signal, spread = self._scales(timesteps, latents.ndim)
        return (signal * noise - spread * latents).to(latents.dtype)

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio ᾱ / (1-ᾱ): float32, shape (B,); 0 at the last step of a zero-terminal-SNR schedule."""
        alphas_cumprod = self.alphas_cumprod[timesteps]
        return alphas_cumprod / (1.0 - alphas_cumprod)

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float, prediction_type: PredictionType) -> torch.Tensor:
        """Loss weights that cap the weight of the easy, little-noised steps: float32, shape (B,).

        Hang et al. 2023 (arXiv:2303.09556), section 3.4: min(SNR, γ) / SNR for a noise target and
        min(SNR, γ) / (SNR + 1) for a velocity target.
        """
        snr, gamma = self.snr(timesteps), min(gamma, torch.finfo(torch.float32).max)
        if prediction_type == "epsilon":
            # min(SNR, γ) / SNR, written so that SNR = 0 gives its limit 1 and not 0 / 0.
            return torch.clamp(gamma / snr, max=1.0)
        return torch.clamp(snr, max=gamma) / (snr + 1.0)

    def errors(self, timesteps: torch.Tensor, huber: Huber | None) -> Errors:
        """How large each difference counts, at these timesteps (int64, shape (B,)).

        None is the squared error d². Scheduled pseudo-Huber losses are those of Khrapov et al. 2024 (arXiv:2403.16728),
        sections 3.2 and 3.3, in the scaling of kohya's sd-scripts, which Diffusers' example shares:
        2c·(√(d² + c²) - c), near d² for small d, and for `smooth_l1` 2·(√(d² + c²) - c), near 2|d| for large d.
        """
        if huber is None:
            return torch.square
        thresholds, smooth = self.huber_thresholds(timesteps, huber), huber.kind == "smooth_l1"

        def errors(differences: torch.Tensor) -> torch.Tensor:
            c = thresholds.reshape(-1, *[1] * (differences.ndim - 1))
            root = torch.sqrt(differences.square() + c.square()) - c
            return 2.0 * root if smooth else 2.0 * c * root

        return errors

    def huber_thresholds(self, timesteps: torch.Tensor, huber: Huber) -> torch.Tensor:
        """The Huber threshold c of each sample: float32, shape (B,).

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
        """√ᾱ and √(1-ᾱ) of each sample, shaped to multiply samples of `ndim` axes."""
        alphas_cumprod = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (ndim - 1))
        return alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
