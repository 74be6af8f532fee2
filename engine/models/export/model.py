"""A trained model that is exported: a base model, some of whose components are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.models.base_model import BaseModel
from engine.models.configs import SCHEDULER_FILE
from engine.models.export.weights import Weights
from engine.models.family import LoadArgs
from engine.models.objectives import registry as objectives
from engine.models.objectives.objective import TargetType


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A base model with trained components."""

    base: BaseModel
    weights: Mapping[str, Weights]
    """The weights of all components that have some."""
    trained: frozenset[str]
    """The names of the components that were trained."""
    prediction_type: TargetType
    zero_terminal_snr: bool
    """True if it was trained with a noise schedule rescaled to zero terminal SNR."""
    resolution: int
    """The resolution of the training in pixels."""
    title: str

    def config(self, component: str) -> Mapping[str, Any]:
        """Return a component's configuration. Raises ModelError."""
        return self.weights[component].config if component in self.weights else self.base.config(component)

    @property
    def base_scheduler(self) -> dict[str, Any]:
        """The base model's scheduler_config.json. Raises ModelError."""
        return self.base.config("scheduler", SCHEDULER_FILE)

    def scheduler_config(self) -> dict[str, Any] | None:
        """Return the scheduler_config.json with which the model draws as it was trained.

        Returns:
            None where it is the base model's own file.

        Raises:
            ModelError: the base model's scheduler does not load.
        """
        is_same = self.prediction_type == self.base.prediction_type and not self.zero_terminal_snr
        if is_same and self.base.single_file is None:
            return None
        args = LoadArgs(
            folder=Path(self.base.folder),
            variants=self.base.variants,
            absent=self.base.absent,
            elsewhere=self.base.places,
            dtype=torch.float32,
            device=torch.device("cpu"),
            prediction_type=self.prediction_type,
            caption_tokens=self.base.family.caption_tokens.usual,
            single_file=self.base.single_file,
            zero_terminal_snr=self.zero_terminal_snr,
        )
        return objectives.scheduler_config(self.base.family.objective, args)

    @property
    def ends_in_noise(self) -> bool:
        """True if the noise schedule ends at a signal-to-noise ratio of zero."""
        return self.zero_terminal_snr or bool(self.base_scheduler.get("rescale_betas_zero_snr"))
