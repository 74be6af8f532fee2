"""Load the Diffusers scheduler with which validation images are drawn."""

from __future__ import annotations

from typing import Any

import diffusers

from engine.core.errors import ModelError, first_line
from engine.models.configs import SCHEDULER_FILE
from engine.models.family import LoadArgs
from engine.models.objectives.flow import spec


def load_scheduler(args: LoadArgs) -> Any:
    """Return the base model's scheduler. Its shift is the model's own, whatever the task's `flow_shift` is.

    Raises:
        ModelError: the scheduler is not supported, or its configuration is malformed.
    """
    name, config, _ = spec.drawing(args.config("scheduler", SCHEDULER_FILE))
    spec.num_train_timesteps(config)
    try:
        return getattr(diffusers, name).from_config(config)
    except (ValueError, TypeError, NotImplementedError, IndexError, ImportError) as error:
        raise ModelError(f"the base model's scheduler does not load: {first_line(error)}") from error
