"""The model families that can be trained. A family is one folder in `families` and one row here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from engine.core.errors import ModelError
from engine.models.families.cogvideox.spec import SPEC as COGVIDEOX
from engine.models.families.flux.spec import SPEC as FLUX
from engine.models.families.flux2_klein.spec import SPEC as FLUX2_KLEIN
from engine.models.families.hunyuan_video.spec import SPEC as HUNYUAN_VIDEO
from engine.models.families.ltx.spec import SPEC as LTX
from engine.models.families.qwen_image.spec import SPEC as QWEN_IMAGE
from engine.models.families.sd.spec import SPEC as SD
from engine.models.families.sd3.spec import SPEC as SD3
from engine.models.families.sdxl.spec import SPEC as SDXL
from engine.models.families.wan.spec import SPEC as WAN
from engine.models.families.z_image.spec import SPEC as Z_IMAGE
from engine.models.spec import FamilySpec

if TYPE_CHECKING:
    from engine.models.family import Family, LoadArgs

_ROWS: Final = (SD, SDXL, SD3, FLUX, QWEN_IMAGE, Z_IMAGE, FLUX2_KLEIN, COGVIDEOX, LTX, WAN, HUNYUAN_VIDEO)

FAMILIES: Final[dict[str, FamilySpec]] = {spec.pipeline: spec for spec in _ROWS}
"""Diffusers' pipeline class (`_class_name` in `model_index.json`) -> family."""

_OTHERS: Final = {name: kind for spec in _ROWS for name, kind in spec.other_pipelines.items()}


def detect(model_index: Mapping[str, Any]) -> FamilySpec:
    """Return the family of a base model.

    Raises:
        ModelError: the family is not supported; the message names it.
    """
    name = model_index.get("_class_name")
    spec = FAMILIES.get(name) if isinstance(name, str) else None
    if spec is None:
        kind = f" ({_OTHERS[name]})" if isinstance(name, str) and name in _OTHERS else ""
        raise ModelError(f"the base model is a {name!r}{kind}; this program trains {', '.join(FAMILIES)}")
    return spec


def load(spec: FamilySpec, args: LoadArgs) -> Family:
    """Load a base model's parts into memory. `Family.spec` is then `spec`: the row for this model (`refine`).

    Raises:
        ModelError: a part is missing, malformed or of the wrong shape.
    """
    module = importlib.import_module(spec.module)
    family: Family = module.load(args)
    family.spec = spec
    return family
