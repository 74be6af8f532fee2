"""The training objectives, by name."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any, Final

from engine.models.objectives.diffusion.spec import DIFFUSION
from engine.models.objectives.flow.spec import FLOW
from engine.models.objectives.objective import Objective, ObjectiveSpec, SchedulerConfig

if TYPE_CHECKING:
    from engine.models.family import LoadArgs

OBJECTIVES: Final[dict[str, ObjectiveSpec]] = {"diffusion": DIFFUSION, "flow": FLOW}
"""`FamilySpec.objective` -> the objective's row."""


def load(name: str, scheduler_config: SchedulerConfig, args: LoadArgs, *, patch: int = 2) -> Objective:
    """Return an objective for a base model's scheduler, on the device.

    Args:
        name: a key of `OBJECTIVES`.
        scheduler_config: the configuration of `load_scheduler`.
        args: the base model.
        patch: the side of the square of latents that is one token of the denoiser, for noise that depends on their
            number.

    Raises:
        ModelError: the noise schedule cannot be trained.
    """
    module = importlib.import_module(OBJECTIVES[name].module)
    objective: Objective = module.load(scheduler_config, args, patch)
    return objective


def load_scheduler(name: str, args: LoadArgs) -> Any:
    """Return the Diffusers scheduler with which a base model draws validation images.

    Raises:
        ModelError: the base model's scheduler is not supported, or its configuration is malformed.
    """
    return importlib.import_module(OBJECTIVES[name].module).load_scheduler(args)


def scheduler_config(name: str, args: LoadArgs) -> dict[str, Any]:
    """Return the configuration of `load_scheduler`, as in a scheduler_config.json.

    Raises:
        ModelError: the base model's scheduler does not load.
    """
    config: dict[str, Any] = json.loads(load_scheduler(name, args).to_json_string())
    return config
