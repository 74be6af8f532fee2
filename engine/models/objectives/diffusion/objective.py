"""The diffusion objective of a loaded base model: its noise schedule and its prediction type."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.models.family import LoadArgs
from engine.models.objectives.diffusion.noise_schedule import NoiseSchedule
from engine.models.objectives.diffusion.sampler import load_scheduler
from engine.models.objectives.huber import Errors
from engine.models.objectives.objective import LossOptions, SchedulerConfig, TargetType

__all__ = ["Diffusion", "load", "load_scheduler"]


@dataclass(frozen=True, slots=True)
class Diffusion:
    """The objective of a loaded base model; methods as in `Objective`."""

    schedule: NoiseSchedule
    prediction_type: TargetType

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.target(self.prediction_type, latents, noise, timesteps)

    def model_time(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps

    def weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor | None:
        if options.snr_gamma is None:
            return None
        return self.schedule.min_snr_weights(timesteps, options.snr_gamma, self.prediction_type)

    def errors(self, latents: torch.Tensor, timesteps: torch.Tensor, options: LossOptions) -> Errors:
        return self.schedule.errors(timesteps, options.huber)


def load(scheduler_config: SchedulerConfig, args: LoadArgs, patch: int) -> Diffusion:
    """Return the objective for a scheduler's configuration, on the device. Its noise does not depend on tokens.

    Raises:
        ModelError: the noise schedule cannot be trained.
    """
    schedule = NoiseSchedule.from_config(scheduler_config, zero_terminal_snr=args.zero_terminal_snr)
    return Diffusion(schedule.to(args.device), args.prediction_type)
