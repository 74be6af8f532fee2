"""An objective that the engine does not know: the straight path between latents and noise, as in flow matching."""

from __future__ import annotations

from typing import Final

from engine.models.objectives.objective import ObjectiveSpec
from engine.task.plan.timesteps import Timesteps

NUM_TIMESTEPS: Final = 1000
TRAINED: Final = 100
"""Only the first timesteps are drawn."""


def _timesteps(args, num_train_timesteps):
    return Timesteps(args.min_timestep, TRAINED)


SPEC: Final = ObjectiveSpec(
    module="tests.support.toy_objective",
    check=lambda config: ["note: a toy objective"],
    prediction_type=lambda config: "v_prediction",
    num_train_timesteps=lambda config: NUM_TIMESTEPS,
    drawing_steps=lambda config: range(1, NUM_TIMESTEPS),
    timesteps=_timesteps,
    check_task=lambda args, prediction_type, pipeline, config: None,
)


class StraightPath:
    """Methods as in `Objective`; at timestep t the share (t + 1) / T is noise."""

    def add_noise(self, latents, noise, timesteps):
        share = self._shares(timesteps, latents)
        return (1 - share) * latents + share * noise

    def target(self, latents, noise, timesteps):
        return noise - latents

    def model_time(self, latents, timesteps):
        return timesteps

    def weights(self, timesteps, options):
        return None

    def errors(self, latents, timesteps, options):
        return lambda differences: differences.square()

    def _shares(self, timesteps, latents):
        shares = (timesteps + 1).to(latents.dtype) / NUM_TIMESTEPS
        return shares.reshape(-1, *[1] * (latents.ndim - 1))


def load(scheduler_config, args, patch):
    """Return the objective."""
    return StraightPath()
