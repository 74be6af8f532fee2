"""The interface of a training objective: noising, target, weights, errors, and checks of the task's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from engine.task.plan.timesteps import Timesteps
from engine.task.task import HuberSchedule, TrainArgs

if TYPE_CHECKING:
    import torch

TargetType = Literal["epsilon", "v_prediction", "flow"]
"""The quantity that a denoiser predicts: the noise, the velocity of diffusion, or that of flow matching."""


@dataclass(frozen=True, slots=True)
class Huber:
    """A pseudo-Huber loss: like the squared error for small differences, linear for large ones."""

    kind: Literal["huber", "smooth_l1"]
    schedule: HuberSchedule
    c: float
    """The smallest threshold between the quadratic and the linear part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """A task's loss function and weighting; the defaults are the plain mean squared error."""

    snr_gamma: float | None = None
    """γ of Min-SNR weighting; None switches it off."""
    huber: Huber | None = None
    """The pseudo-Huber loss; None is the squared error."""

    @classmethod
    def of(cls, args: TrainArgs) -> Self:
        """Return the loss options of a task."""
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
        """Return the target of the prediction: the shape and dtype of `latents`."""
        ...

    def model_time(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the time that the denoiser is told, shape (B,): the timesteps, or noise levels in float32."""
        ...

    def weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor | None:
        """Return each sample's loss weight: float32, shape (B,); None weights all samples equally."""
        ...

    def errors(
        self, latents: torch.Tensor, timesteps: torch.Tensor, options: LossOptions
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function that maps differences, float32, shape (B, …), to errors of the same shape."""
        ...


SchedulerConfig = Mapping[str, Any]
"""A base model's `scheduler_config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """An objective's row in the registry, which does not import torch."""

    module: str
    """The name of the module with `load(scheduler_config, args: LoadArgs, patch: int) -> Objective` (see
    `registry.load`), and `load_scheduler(args)`, the Diffusers scheduler that draws validation images."""
    check: Callable[[SchedulerConfig], list[str]]
    """Returns notes on a base model's scheduler. Raises ModelError if it belongs to another objective."""
    prediction_type: Callable[[SchedulerConfig], TargetType]
    """Returns the quantity that the base model predicts. Raises ModelError."""
    num_train_timesteps: Callable[[SchedulerConfig], int]
    """Returns the number of timesteps; a timestep is an integer index below it. Raises ModelError."""
    drawing_steps: Callable[[SchedulerConfig], range]
    """Returns the numbers of steps in which the base model's scheduler can draw. Raises ModelError."""
    timesteps: Callable[[TrainArgs, int], Timesteps]
    """Returns the timesteps to draw and their weights, for a model's number of timesteps. Raises TaskError if none.
    `TrainArgs.timestep_sampling` is what is drawn: the family's usual one if the task does not say."""
    check_task: Callable[[TrainArgs, TargetType, str, SchedulerConfig], None]
    """Raises TaskError for keys that do not fit the objective, the prediction type or the base model's scheduler. The
    third argument is the name of the family's pipeline, for messages."""
    describe_noise: Callable[[SchedulerConfig, TrainArgs, int], str] | None = None
    """Returns how noise levels follow from timesteps for latents of a number of tokens, for `--plan`; None if no key
    changes that. Raises ModelError."""
