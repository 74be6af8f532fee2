"""The flow-matching objective of a loaded base model: the straight path between latents and noise.

x_t = (1 - σ) x₀ + σ ε, and the model predicts its velocity ε - x₀ (Lipman et al. 2022, arXiv:2210.02747; Esser et al.
2024, arXiv:2403.03206, section 3.1). A timestep is an index i of T; its noise level σ is (i + 1) / T, shifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from engine.models.family import LoadArgs
from engine.models.objectives.flow.sampler import load_scheduler
from engine.models.objectives.flow.shift import Shift
from engine.models.objectives.flow.spec import num_train_timesteps
from engine.models.objectives.huber import Errors, pseudo_huber
from engine.models.objectives.objective import Huber, LossOptions, SchedulerConfig

__all__ = ["Flow", "load", "load_scheduler"]


@dataclass(frozen=True, slots=True)
class Flow:
    """The objective of a loaded base model; methods as in `Objective`."""

    num_train_timesteps: int
    """The number of timesteps T: timesteps are 0 … T - 1."""
    shift: Shift
    device: torch.device
    patch: int = 2
    """The side of the square of latents that is one token of the denoiser, for a shift that depends on the size."""
    _tables: dict[float, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Shift -> the noise level of each timestep."""

    def sigmas(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noise levels σ: float32, shape (B,), from nearly 0 to 1.

        They are those of Diffusers' FlowMatchEulerDiscreteScheduler, in the opposite order.

        Args:
            latents: shape (B, C, …, height, width); only its shape is used.
            timesteps: int64, shape (B,).
        """
        shift = self.shift.fixed if self.shift.fixed is not None else self.shift.at(self._num_tokens(latents))
        if shift not in self._tables:
            # On the CPU, so that the bits are those of every device.
            level = torch.arange(1, self.num_train_timesteps + 1, dtype=torch.float32) / self.num_train_timesteps
            self._tables[shift] = (shift * level / (1 + (shift - 1) * level)).to(self.device)
        return self._tables[shift][timesteps]

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigmas = self.sigmas(latents, timesteps).reshape(-1, *[1] * (latents.ndim - 1))
        return ((1.0 - sigmas) * latents + sigmas * noise).to(latents.dtype)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return noise - latents

    def model_time(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.sigmas(latents, timesteps)

    def weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor | None:
        return None

    def errors(self, latents: torch.Tensor, timesteps: torch.Tensor, options: LossOptions) -> Errors:
        if options.huber is None:
            return torch.square
        return pseudo_huber(_thresholds(self.sigmas(latents, timesteps), options.huber), options.huber.kind)

    def _num_tokens(self, latents: torch.Tensor) -> int:
        *frames, height, width = latents.shape[2:]
        return math.prod(frames) * (height // self.patch) * (width // self.patch)


def _thresholds(sigmas: torch.Tensor, huber: Huber) -> torch.Tensor:
    """Return the Huber threshold c of each sample: float32, shape (B,).

    As for diffusion (`NoiseSchedule.huber_thresholds`), where the time is σ and the ratio of noise to signal is
    σ / (1 - σ): `exponential` is c^σ, `snr` is (1 - c) (1 - σ)² + c.
    """
    if huber.schedule == "constant":
        return torch.full_like(sigmas, huber.c)
    if huber.schedule == "exponential":
        return torch.exp(math.log(huber.c) * sigmas)
    return (1.0 - huber.c) * (1.0 - sigmas).square() + huber.c


def load(scheduler_config: SchedulerConfig, args: LoadArgs, patch: int) -> Flow:
    """Return the objective for a scheduler's configuration, on the device.

    Raises:
        ModelError: the configuration is malformed.
    """
    shift = Shift.of(scheduler_config, args.flow_shift)
    return Flow(num_train_timesteps(scheduler_config), shift, args.device, patch)
