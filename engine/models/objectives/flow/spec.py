"""The specification of the flow-matching objective (Lipman et al. 2022, arXiv:2210.02747). No torch."""

from __future__ import annotations

import math
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.flow.shift import EXPONENTIAL, Shift, flag, malformed, number
from engine.models.objectives.objective import ObjectiveSpec, SchedulerConfig, TargetType
from engine.task.plan.timesteps import Timesteps
from engine.task.task import TrainArgs

EULER: Final = "FlowMatchEulerDiscreteScheduler"
WITH_FLOW_SIGMAS: Final = frozenset(
    {
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Diffusers' schedulers that draw with flow matching if `use_flow_sigmas` is true, and with diffusion otherwise. Not
among them is SASolverScheduler, which does not take the shift that pipelines give it."""
_MAX_TIMESTEPS: Final = 10_000
"""Limit on the number of timesteps, for each of which a probability is computed. Published models have 1000."""
_REFUSED: Final = {
    "prediction_type": "it always predicts the velocity from the image to the noise",
    "snr_gamma": "its loss already weights all noise levels alike",
    "zero_terminal_snr": "its last timestep is pure noise already",
    "noise_offset": "its last timestep is pure noise, so that it draws dark and bright images without",
}
"""Keys of `train_args` that have no meaning here -> the reason."""


def drawing(config: SchedulerConfig) -> tuple[str, dict[str, Any], list[str]]:
    """Return the Diffusers scheduler class that draws validation images, its configuration, and notes to print.

    Raises:
        ModelError: it is not a scheduler of flow matching, or its configuration is malformed.
    """
    name, found = str(config.get("_class_name")), dict(config)
    is_flow = name == EULER or (name in WITH_FLOW_SIGMAS and flag(config, "use_flow_sigmas"))
    if not is_flow or config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise ModelError(
            f"the base model's scheduler {name[:60]!r} is not one of flow matching, with which this kind of model "
            f"is trained; a {EULER} in its scheduler_config.json can be trained"
        )
    if (
        name != EULER
        and flag(config, "use_dynamic_shifting")
        and config.get("time_shift_type") not in (None, EXPONENTIAL)
    ):
        raise malformed("time_shift_type", config["time_shift_type"])
    if flag(config, "invert_sigmas"):
        raise ModelError("the base model's scheduler has invert_sigmas, with which this program cannot train")
    if config.get("shift_terminal") is not None:
        number(config, "shift_terminal", 0.0, least=0.0, most=0.999)
    if not flag(config, "use_beta_sigmas"):
        return name, found, []
    note = (
        "note: the base model's scheduler has use_beta_sigmas, which needs scipy, which is not part of this program: "
        "validation images are drawn without; training is the same"
    )
    return name, found | {"use_beta_sigmas": False}, [note]


def num_train_timesteps(config: SchedulerConfig) -> int:
    """Return the number of timesteps; Diffusers' default if the configuration does not give it. Raises ModelError."""
    found = config.get("num_train_timesteps", 1000)
    if type(found) is not int or not 1 <= found <= _MAX_TIMESTEPS:
        raise malformed("num_train_timesteps", found)
    return found


def drawing_steps(config: SchedulerConfig) -> range:
    """Return the numbers of steps in which Diffusers' scheduler can draw. Raises ModelError."""
    name, _, _ = drawing(config)
    terminal, end = config.get("shift_terminal") or 0.0, num_train_timesteps(config)
    if name != EULER and (shift := Shift.of(config, None).fixed) is not None:
        # These round timesteps down to integers, and the first two must differ.
        end = min(end, math.ceil(end * (1 - terminal) / shift))
    return range(2 if terminal else 1, end)  # the last noise level is moved to the terminal one, the first one stays


def _check(config: SchedulerConfig) -> list[str]:
    """Raise ModelError for schedulers that are not of flow matching; return notes on the scheduler for validation."""
    _, _, notes = drawing(config)
    for wanted in (None, "resolution"):  # Diffusers' pipelines compute the second one even if they do not use it
        Shift.of(config, wanted)
    return notes


def _check_task(args: TrainArgs, prediction_type: TargetType, pipeline: str, config: SchedulerConfig) -> None:
    plain = TrainArgs()
    for key, reason in _REFUSED.items():
        if getattr(args, key) != getattr(plain, key):
            raise TaskError(
                f"train_args.{key} has no meaning for {pipeline}, which is trained by flow matching: {reason}; remove "
                "this key"
            )


def _describe_noise(config: SchedulerConfig, args: TrainArgs, tokens: int) -> str:
    shift = Shift.of(config, args.flow_shift)
    _ = Shift.of(config, None).at(tokens)  # that of validation images
    own = "" if args.flow_shift is not None else ", as the base model's scheduler says"
    by_size = "" if shift.fixed is not None else f" at {args.extent}{' pixels' if args.num_frames == 1 else ''}"
    return f"shift {shift.at(tokens):.4g}{by_size}{own}"


FLOW: Final = ObjectiveSpec(
    module="engine.models.objectives.flow.objective",
    check=_check,
    prediction_type=lambda config: "flow",
    num_train_timesteps=num_train_timesteps,
    drawing_steps=drawing_steps,
    timesteps=Timesteps.of,
    check_task=_check_task,
    describe_noise=_describe_noise,
)
