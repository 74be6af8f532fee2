"""The specification of the diffusion objective (Ho et al. 2020, arXiv:2006.11239). No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, cast

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.diffusion import schedulers
from engine.models.objectives.objective import ObjectiveSpec, SchedulerConfig, TargetType
from engine.task.plan.timesteps import Timesteps
from engine.task.task import TrainArgs

WEBUI_PREDICTION: Final[Mapping[TargetType, str]] = {"epsilon": "epsilon", "v_prediction": "v"}
"""Prediction type -> its name in Stability AI's metadata specification (`modelspec.prediction_type`)."""

_OF_FLOW: Final = ("timestep_sampling", "logit_mean", "logit_std", "mode_scale", "flow_shift")
"""Keys of `train_args` that have no meaning here."""


def _check(config: SchedulerConfig) -> list[str]:
    """Raise ModelError for schedulers of other kinds of diffusion; return notes on the scheduler for validation."""
    name, _, notes = schedulers.drawing(config)
    offset = config.get("steps_offset", 0)
    if type(offset) is not int or offset not in (0, 1):  # the validation would begin after the last timestep
        raise ModelError(
            f"the base model's scheduler does not load: steps_offset is {str(offset)[:40]!r}; download it again"
        )
    shift = config.get("snr_shift_scale", 1.0)  # other schedulers have none, and ignore it
    if name in schedulers.SHIFTED and (type(shift) not in (int, float) or not 0 < shift < math.inf):
        raise ModelError(
            f"the base model's scheduler does not load: snr_shift_scale is {str(shift)[:40]!r}; download it again"
        )
    return notes


def _prediction_type(config: SchedulerConfig) -> TargetType:
    found = config.get("prediction_type", "epsilon")
    if found not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"the base model's scheduler predicts {found!r}; epsilon and v_prediction can be trained, "
            "and train_args.prediction_type can name one of them"
        )
    return cast(TargetType, found)


def _check_task(args: TrainArgs, prediction_type: TargetType, pipeline: str, config: SchedulerConfig) -> None:
    plain = TrainArgs()
    if keys := [key for key in _OF_FLOW if getattr(args, key) != getattr(plain, key)]:
        raise TaskError(
            f"train_args.{keys[0]} is for models that are trained by flow matching, which {pipeline} is not: "
            "remove this key"
        )
    ends_in_noise = args.zero_terminal_snr or config.get("rescale_betas_zero_snr") is True
    if ends_in_noise and prediction_type != "v_prediction":
        what = "train_args.zero_terminal_snr" if args.zero_terminal_snr else "the base model's noise schedule"
        raise TaskError(
            f"{what} needs prediction_type v_prediction: at the last timestep the input is pure noise, and a model "
            "that predicts the noise learns nothing from it, and draws black"
        )


DIFFUSION: Final = ObjectiveSpec(
    module="engine.models.objectives.diffusion.objective",
    check=_check,
    prediction_type=_prediction_type,
    num_train_timesteps=schedulers.num_train_timesteps,
    drawing_steps=schedulers.drawing_steps,
    timesteps=Timesteps.of,
    check_task=_check_task,
)
