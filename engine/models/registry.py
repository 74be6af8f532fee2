"""The model families that can be trained: one literal table. A family is one module beside this one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.core.errors import ModelError
from engine.models import checks, webui_base
from engine.models.webui_base import WebuiBase
from engine.task.task import PredictionType

if TYPE_CHECKING:
    from engine.models.family import Family, LoadArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A family's row: known without importing torch."""

    module: str
    components: tuple[str, ...]
    """The sub-folders of the base model that training and validation need."""
    weighted: tuple[str, ...]
    """Those of them that hold weights."""
    check: Callable[[checks.Configs], None]
    """Refuses, by a ModelError, configurations that do not make this family."""
    webui_base: Callable[[checks.Configs, PredictionType], WebuiBase]
    """What LoRA files for web interfaces call the base model."""
    has_float32_vae: Callable[[checks.Configs], bool]
    """Whether the VAE is in float32 whatever the task's precision."""


DENOISER: Final = "unet"
"""What Diffusers' LoRA files call a family's denoiser, and the sub-folder that it is in."""

FAMILIES: Final[Mapping[str, Entry]] = {
    "StableDiffusionPipeline": Entry(
        module="sd",
        components=("scheduler", "tokenizer", "text_encoder", "vae", "unet"),
        weighted=("text_encoder", "vae", "unet"),
        check=checks.stable_diffusion,
        webui_base=webui_base.stable_diffusion,
        has_float32_vae=checks.has_no_float32_vae,
    ),
    "StableDiffusionXLPipeline": Entry(
        module="sdxl",
        components=("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae", "unet"),
        weighted=("text_encoder", "text_encoder_2", "vae", "unet"),
        check=checks.stable_diffusion_xl,
        webui_base=webui_base.stable_diffusion_xl,
        has_float32_vae=checks.has_float32_vae,
    ),
}
"""Diffusers pipeline class (`_class_name` in `model_index.json`) -> family."""

_OTHERS: Final = {
    "StableDiffusionXLImg2ImgPipeline": "XL's refiner, or another image-to-image model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionInstructPix2PixPipeline": "an image-editing model",
    "StableDiffusionXLInstructPix2PixPipeline": "an image-editing model",
    "StableDiffusionDepth2ImgPipeline": "a depth-to-image model",
    "StableDiffusionUpscalePipeline": "an upscaler",
    "StableDiffusionLatentUpscalePipeline": "an upscaler",
}
"""What people may take for one of these families."""


def detect(model_index: Mapping[str, Any]) -> Entry:
    """The family of a base model.

    Raises:
        ModelError: no family of ours; says what it is.
    """
    name = model_index.get("_class_name")
    entry = FAMILIES.get(name) if isinstance(name, str) else None
    if entry is None:
        kind = f" ({_OTHERS[name]})" if isinstance(name, str) and name in _OTHERS else ""
        raise ModelError(f"the base model is a {name!r}{kind}; this program trains {', '.join(FAMILIES)}")
    return entry


def load(entry: Entry, args: LoadArgs) -> Family:
    """Load a base model's parts into memory.

    Raises:
        ModelError: a part is missing, malformed or of the wrong shape.
    """
    module = importlib.import_module(f"engine.models.families.{entry.module}.model")
    family: Family = module.load(args)
    return family
