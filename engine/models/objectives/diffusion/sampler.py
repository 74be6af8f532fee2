"""Load the Diffusers scheduler with which validation images are drawn."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch

from engine.core.errors import ModelError, first_line
from engine.models.configs import SCHEDULER_FILE
from engine.models.family import LoadArgs
from engine.models.objectives.diffusion import schedulers


def load_scheduler(args: LoadArgs) -> Any:
    """Return the base model's scheduler, with the prediction type and noise schedule of the training.

    Raises:
        ModelError: the scheduler is not supported, or its configuration is malformed.
    """
    name, config, _ = schedulers.drawing(args.config("scheduler", SCHEDULER_FILE))
    schedulers.num_train_timesteps(config)
    cls = getattr(diffusers, name)
    config |= {"prediction_type": args.prediction_type}
    if args.zero_terminal_snr:
        # Sampling must start at the last timestep, and not every scheduler can start from pure noise (Lin et al.
        # 2023, arXiv:2305.08891, sections 3.1 and 3.3).
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(cls).parameters:
            cls = diffusers.DDIMScheduler
            # Its default would clip latents, unlike the schedulers without that option.
            config = {"clip_sample": False, **config}
    try:
        scheduler = cls.from_config(config)
    except (ValueError, TypeError, NotImplementedError, IndexError) as error:
        raise ModelError(f"the base model's scheduler does not load: {first_line(error)}") from error
    betas = getattr(scheduler, "betas", torch.zeros(1))
    if not bool(((betas >= 0) & (betas <= 1)).all()):  # refuses NaN, too
        raise ModelError("the base model's scheduler does not load: it has betas outside [0, 1]; download it again")
    return scheduler
