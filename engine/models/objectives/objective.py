"""What a training objective answers for: noising, target, weights, errors, and the task keys that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from engine.task.plan.timesteps import Timesteps
from engine.task.task import HuberSchedule, PredictionType, TrainArgs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Huber:
    """A pseudo-Huber loss: like the squared error for small differences, linear for large ones."""

    kind: Literal["huber", "smooth_l1"]
    schedule: HuberSchedule
    c: float
    """The threshold, at its smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """How a task weighs differences; the defaults are the plain mean squared error."""

    snr_gamma: float | None = None
    """γ of Min-SNR weighting, None for none."""
    huber: Huber | None = None
    """None is the squared error."""

    @classmethod
    def of(cls, args: TrainArgs) -> Self:
        """Return those of a task."""
        huber = None if args.loss_type == "l2" else Huber(args.loss_type, args.huber_schedule, args.huber_c)
        return cls(snr_gamma=args.snr_gamma, huber=huber)


class Objective(Protocol):
    """The objective of a loaded base model. Samples have any rank; their first axis is the batch.

    `latents` and `noise` are floating point, shape (B, …), `timesteps` int64, shape (B,), all on one device.
    """

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents: the shape and dtype of `latents`."""
        ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the denoiser is to predict: the shape and dtype of `latents`."""
        ...

    def weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor | None:
        """Return each sample's loss weight: float32, shape (B,); None weighs all alike."""
        ...

    def errors(self, timesteps: torch.Tensor, options: LossOptions) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from differences, float32, shape (B, …), to each one's error, the same shape."""
        ...


SchedulerConfig = Mapping[str, Any]
"""A base model's `scheduler_config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """An objective's row: known without importing torch."""

    module: str
    """The module with `load(scheduler_config, args: LoadArgs) -> Objective`."""
    check: Callable[[SchedulerConfig], list[str]]
    """Return notes on a base model's scheduler; raise ModelError for one that this objective is not for."""
    prediction_type: Callable[[SchedulerConfig], PredictionType]
    """Return what the base model was trained to predict. Raises ModelError."""
    num_train_timesteps: Callable[[SchedulerConfig], int]
    """Return the number of timesteps; a timestep is an integer index below it. Raises ModelError."""
    timesteps: Callable[[TrainArgs, int], Timesteps]
    """Return which timesteps are drawn, with their weights, of so many. Raises TaskError where none is left."""
    check_task: Callable[[TrainArgs, PredictionType], None]
    """Raise TaskError for keys that make no sense with this prediction type."""
