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

_OTHERS: Final = {
    "StableDiffusionXLImg2ImgPipeline": "the refiner of Stable Diffusion XL, or another image-to-image model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionInstructPix2PixPipeline": "an image-editing model",
    "StableDiffusionXLInstructPix2PixPipeline": "an image-editing model",
    "StableDiffusionDepth2ImgPipeline": "a depth-to-image model",
    "StableDiffusion3Img2ImgPipeline": "an image-to-image pipeline",
    "StableDiffusion3InpaintPipeline": "an inpainting model",
    "StableDiffusion3ControlNetPipeline": "a pipeline with a ControlNet",
    "StableDiffusion3ControlNetInpaintingPipeline": "an inpainting model with a ControlNet",
    "StableDiffusion3PAGPipeline": "a pipeline with another kind of guidance",
    "StableDiffusion3PAGImg2ImgPipeline": "an image-to-image pipeline",
    "StableDiffusionUpscalePipeline": "an upscaler",
    "StableDiffusionLatentUpscalePipeline": "an upscaler",
    "QwenImageEditPipeline": "Qwen-Image-Edit, an image-editing model",
    "QwenImageEditPlusPipeline": "Qwen-Image-Edit, an image-editing model",
    "QwenImageEditInpaintPipeline": "Qwen-Image-Edit, an image-editing model",
    "QwenImageLayeredPipeline": "Qwen-Image-Layered, which takes an image apart",
    "QwenImageImg2ImgPipeline": "an image-to-image model",
    "QwenImageInpaintPipeline": "an inpainting model",
    "QwenImageControlNetPipeline": "a model with a ControlNet",
    "QwenImageControlNetInpaintPipeline": "a model with a ControlNet",
    "ZImageOmniPipeline": "Z-Image-Omni, which is given images besides the text",
    "ZImageImg2ImgPipeline": "an image-to-image model",
    "ZImageInpaintPipeline": "an inpainting model",
    "ZImageControlNetPipeline": "a model with a ControlNet",
    "ZImageControlNetInpaintPipeline": "a model with a ControlNet",
    "Flux2Pipeline": "FLUX.2 [dev], whose text encoder has 24 billion parameters",
    "Flux2KleinKVPipeline": "FLUX.2 [klein] for editing images",
    "Flux2KleinInpaintPipeline": "an inpainting model",
    "FluxImg2ImgPipeline": "an image-to-image pipeline; name the FluxPipeline of the same model",
    "FluxInpaintPipeline": "an inpainting pipeline; name the FluxPipeline of the same model",
    "FluxFillPipeline": "FLUX.1 Fill, an inpainting model",
    "FluxControlPipeline": "FLUX.1 Canny or Depth, which follow a control image",
    "FluxControlNetPipeline": "a FLUX.1 with a ControlNet",
    "FluxKontextPipeline": "FLUX.1 Kontext, an image-editing model",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, which makes prompts of images",
    "LTXConditionPipeline": "an LTX-Video 0.9.5 or later, which is given images and places frames otherwise",
    "LTXImageToVideoPipeline": "an image-to-video pipeline; name the LTXPipeline of the same model",
    "LTXLatentUpsamplePipeline": "an upscaler",
    "LTXI2VLongMultiPromptPipeline": "an image-to-video pipeline",
    "LTX2Pipeline": "LTX-2, which makes sound as well",
    "LTX2ImageToVideoPipeline": "LTX-2, which makes sound as well",
    "LTX2ConditionPipeline": "LTX-2, which makes sound as well",
    "WanImageToVideoPipeline": "an image-to-video model",
    "WanVACEPipeline": "Wan VACE, which is given a clip to edit",
    "WanVideoToVideoPipeline": "a video-to-video pipeline; name the WanPipeline of the same model",
    "WanAnimatePipeline": "Wan Animate, which is given a clip and an image",
    "CogVideoXImageToVideoPipeline": "a CogVideoX that is given an image",
    "CogVideoXVideoToVideoPipeline": "a video-to-video pipeline; name the CogVideoXPipeline of the same model",
    "CogVideoXFunControlPipeline": "CogVideoX-Fun, which follows a control video",
    "HunyuanVideoImageToVideoPipeline": "a HunyuanVideo that is given an image",
    "HunyuanVideoFramepackPipeline": "FramePack, which makes a video in pieces from an image",
    "HunyuanSkyreelsImageToVideoPipeline": "SkyReels, a HunyuanVideo that is given an image",
    "HunyuanVideo15Pipeline": "HunyuanVideo 1.5, which has other parts than HunyuanVideo",
    "HunyuanVideo15ImageToVideoPipeline": "HunyuanVideo 1.5, which has other parts than HunyuanVideo",
    "ChromaPipeline": "Chroma, which has FLUX.1's layers but no CLIP and no guidance",
}
"""Pipelines that may be confused with one of these families -> what they are."""


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
