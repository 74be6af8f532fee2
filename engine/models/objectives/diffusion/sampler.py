"""Diffusers' scheduler of a base model, which draws validation images."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch

from engine.core.errors import ModelError, first_line
from engine.models.configs import SCHEDULER_FILE
from engine.models.family import LoadArgs
from engine.models.loading import read_config
from engine.models.objectives.diffusion import schedulers


def load_scheduler(args: LoadArgs) -> Any:
    """Return the scheduler that the base model names, predicting what the training predicts.

    Raises:
        ModelError: no scheduler of Diffusers', or a malformed configuration.
    """
    name, config, _ = schedulers.drawing(read_config(args, "scheduler", SCHEDULER_FILE))
    schedulers.num_train_timesteps(config)
    cls = getattr(diffusers, name)
    config |= {"prediction_type": args.prediction_type}
    if args.zero_terminal_snr:
        # Sampling starts at the very last timestep, and not every scheduler can start from noise alone (Lin et al.
        # 2023, arXiv:2305.08891, sections 3.1 and 3.3).
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(cls).parameters:
            cls = diffusers.DDIMScheduler
            # Its own default would clip latents, which schedulers without that option never do.
            config = {"clip_sample": False, **config}
    try:
        scheduler = cls.from_config(config)
    except (ValueError, TypeError, NotImplementedError, IndexError) as error:
        raise ModelError(f"the base model's scheduler does not load: {first_line(error)}") from error
    betas = getattr(scheduler, "betas", torch.zeros(1))
    if not bool(((betas >= 0) & (betas <= 1)).all()):  # nor NaN
        raise ModelError("the base model's scheduler does not load: it has betas outside [0, 1]; download it again")
    return scheduler
