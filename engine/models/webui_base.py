"""What LoRA files in the web interfaces' format call the kind of base model that they are for, by family. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.models.checks import Configs
from engine.task.task import PredictionType

_OPEN_CLIP_WIDTH: Final = 1024
"""Of the text states of SD 2.x; those of 1.x are 768 wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebuiBase:
    """A kind of base model."""

    architecture: str
    """In Stability AI's metadata specification (`modelspec.architecture`)."""
    version: str
    """In kohya's metadata (`ss_base_model_version`)."""
    implementation: str
    """Whose names the modules have (`modelspec.implementation`)."""


def stable_diffusion(config: Configs, prediction_type: PredictionType) -> WebuiBase:
    """Stable Diffusion 1.x or 2.x."""
    suffix, kind = ("_v", "768-v") if prediction_type == "v_prediction" else ("", "512")
    is_v2 = config("unet").get("cross_attention_dim") == _OPEN_CLIP_WIDTH
    return WebuiBase(
        architecture=f"stable-diffusion-v2-{kind}" if is_v2 else "stable-diffusion-v1",
        version=f"sd_v{2 if is_v2 else 1}{suffix}",
        implementation="diffusers",
    )


def stable_diffusion_xl(config: Configs, prediction_type: PredictionType) -> WebuiBase:
    """Stable Diffusion XL, whose modules have Stability AI's names."""
    return WebuiBase(
        architecture="stable-diffusion-xl-v1-base",
        version="sdxl_base_v1-0",
        implementation="https://github.com/Stability-AI/generative-models",
    )
