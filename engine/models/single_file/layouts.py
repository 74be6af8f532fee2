"""Detect the model in a single file by its tensors' names and shapes, and refuse other models by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.single_file import sizes
from engine.models.single_file.header import Header, Tensor

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
INDEX: Final = ""
"""The component name under which the pipeline's own configuration (model_index.json) is kept."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a file with a component's weights: its prefix, and the naming scheme of its tensors."""

    kind: str
    """The naming scheme: `unet` or `vae` (original Stable Diffusion), `clip` (transformers), `open_clip` (OpenCLIP)."""
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A layout of a whole model in one file."""

    title: str
    pipeline: str
    """Diffusers' pipeline class: the family's key in the registry."""
    marks: tuple[str, ...]
    """Prefixes that a file of this layout has, all of them, and other layouts do not have."""
    parts: Mapping[str, Part]
    """Component with weights -> its place in the file."""
    configs_file: str
    assumed_prediction: str
    """The prediction type of the best-known models of this layout: it cannot be told from the weights."""

    def skeleton(self) -> dict[str, dict[str, Any]]:
        """The configurations of the best-known model of this layout, by component."""
        value: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / self.configs_file).read_bytes())
        return value


_COMMON: Final = {"vae": Part("vae", VAE), "unet": Part("unet", UNET)}

LAYOUTS: Final = (
    Layout(
        title="Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        marks=("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
        parts={
            "text_encoder": Part("clip", "conditioner.embedders.0.transformer."),
            "text_encoder_2": Part("open_clip", "conditioner.embedders.1.model."),
            **_COMMON,
        },
        configs_file="xl.json",
        assumed_prediction="epsilon",
    ),
    Layout(
        title="Stable Diffusion 2.x",
        pipeline="StableDiffusionPipeline",
        marks=("cond_stage_model.model.",),
        parts={"text_encoder": Part("open_clip", "cond_stage_model.model."), **_COMMON},
        configs_file="sd2.json",
        assumed_prediction="v_prediction",
    ),
    Layout(
        title="Stable Diffusion 1.x",
        pipeline="StableDiffusionPipeline",
        marks=("cond_stage_model.transformer.",),
        parts={"text_encoder": Part("clip", "cond_stage_model.transformer."), **_COMMON},
        configs_file="sd1.json",
        assumed_prediction="epsilon",
    ),
)

_OTHERS: Final = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (
            r"\.lora_(down|up|mid|A|B)\.|\.lora\.(down|up)\.|_lora\.(down|up)\.|\.(hada_w\d|lokr_w\d|dora_scale|oft_)",
            "a LoRA, not a base model; name the model that it was trained on",
        ),
        (r"^(emb_params|string_to_param.*|clip_[gl])$", "a textual-inversion embedding, not a base model"),
        (r"^control_model\.|^controlnet_|^input_hint_block\.|^control_", "a ControlNet, not a base model"),
        (r"motion_modules\.", "an AnimateDiff motion module, not a base model"),
        (r"time_stack\.", "a video model (Stable Video Diffusion)"),
        (r"joint_blocks\.\d", "a Stable Diffusion 3"),
        (r"stream_modulation", "a Flux 2"),
        (r"double_blocks\.\d", "a Flux, Chroma or HunyuanVideo model"),
        (r"double_layers\.\d", "an AuraFlow"),
        (r"cap_embedder\.", "a Lumina or Z-Image model"),
        (r"^clip_txt_mapper\.|\.channelwise\.", "a Stable Cascade"),
        (r"^edm_", "an EDM model (Playground 2.5, CosXL), whose noise is scaled in another way"),
        (r"^conditioner\.embedders\.0\.model\.", "a Stable Diffusion XL refiner, which only refines images"),
        (r"^depth_model\.", "a depth-to-image model"),
        (r"^noise_augmentor\.|^embedder\.model\.", "an image-variation model (unCLIP)"),
    )
)
"""Patterns of tensor names -> kinds of files that are not a text-to-image Stable Diffusion, tried in this order."""
_FOLDER: Final = "name the whole model as model.name, and this file in model.components"
_ALONE: Final = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"^(down_blocks|mid_block|up_blocks)\.", f"a UNet alone, in Diffusers' layout; {_FOLDER}"),
        (r"^(encoder|decoder)\.(down|up|mid|conv_in)", f"an autoencoder (VAE) alone; {_FOLDER}"),
        (r"^(text_model\.|transformer\.resblocks\.)", f"a text encoder alone; {_FOLDER}"),
    )
)
"""Patterns of tensor names -> kinds of files with one component, tried after the others."""

_WHOLE: Final = (
    (re.compile(r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\."), "a whole model"),
    (re.compile(r"^input_blocks\."), "a UNet with the original names"),
)

_CHANNELS: Final = {
    9: "an inpainting model",
    8: "an image-editing model (InstructPix2Pix)",
    7: "an upscaling model",
    5: "a depth-to-image model",
}
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_SIZES: Final[Mapping[str, Callable[[sizes.Shapes, Mapping[str, Any]], sizes.Config]]] = {
    "unet": sizes.unet,
    "vae": sizes.vae,
    "clip": sizes.clip,
    "open_clip": sizes.open_clip,
}


def detect(header: Header, name: str, without: Set[str] = frozenset()) -> Layout:
    """Return the layout of a file.

    Args:
        header: the file's header.
        name: its name in messages.
        without: components that come from elsewhere.

    Raises:
        ModelError: not a whole text-to-image Stable Diffusion; the message names what it seems to be.
    """
    names = header.tensors
    complete = [layout for layout in LAYOUTS if all(_has(names, mark) for mark in layout.marks)]
    if what := _kind(names, _OTHERS + _ALONE):
        raise ModelError(
            f"the base model {name} is {what}" + ("" if ";" in what else "; this program does not train it")
        )
    if not _has(names, f"{UNET}input_blocks."):
        first = ", ".join(sorted(names)[:2])
        raise ModelError(
            f"the base model {name} is not a Stable Diffusion that this program knows (its tensors: {first[:120]}, …)"
        )
    shape = names[f"{UNET}input_blocks.0.0.weight"].shape if f"{UNET}input_blocks.0.0.weight" in names else ()
    if len(shape) == 4 and shape[1] in _CHANNELS:
        raise ModelError(
            f"the base model {name} is {_CHANNELS[shape[1]]} (its UNet takes {shape[1]} channels); "
            "only text-to-image models can be trained"
        )
    has_vae = _has(names, VAE) or "vae" in without
    missing = [what for what, there in (("text encoder", complete), ("VAE", has_vae)) if not there]
    if missing:
        raise ModelError(f"the base model {name} has no {' and no '.join(missing)}; use the whole checkpoint")
    return complete[0]


def configurations(header: Header, layout: Layout, without: Set[str] = frozenset()) -> dict[str, dict[str, Any]]:
    """Return component -> its configuration in the form of Diffusers or transformers, with the sizes in the file.

    Args:
        header: the file's header.
        layout: its layout.
        without: components that come from elsewhere, whose configurations are those of the best-known model.

    Raises:
        ModelError: incomplete, irregular or quantised.
    """
    configs = layout.skeleton()
    for component, part in layout.parts.items():
        if component not in without:
            configs[component] = _sized(header, component, part, configs[component])
    configs["scheduler"] = _scheduler(header, configs["scheduler"], layout)
    configs[INDEX] = {"_class_name": layout.pipeline}
    return configs


def _sized(header: Header, component: str, part: Part, skeleton: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's configuration with the sizes of its weights in the file."""
    inside = {original_name(key, part): tensor for key, tensor in header.tensors.items() if key.startswith(part.prefix)}
    _require_floats(component, {key: tensor for key, tensor in inside.items() if not is_buffer(key)})
    shapes = {key: tensor.shape for key, tensor in inside.items()}
    return _SIZES[part.kind](shapes, skeleton)


def _require_floats(component: str, tensors: Mapping[str, Tensor]) -> None:
    if foreign := sorted({tensor.dtype for tensor in tensors.values()} - _FLOATS):
        raise ModelError(
            f"the base model's {component} is stored as {', '.join(foreign)}, a quantised form; "
            "use the fp16 or the full-precision file"
        )


def alone(header: Header, component: str, own: Mapping[str, Any], name: str) -> tuple[Layout | None, dict[str, Any]]:
    """Return the layout and the configuration of a file that holds one component.

    Args:
        header: the file's header.
        component: the component.
        own: the configuration of the base model's own component.
        name: the file's name in messages.

    Returns:
        The layout is None, and the configuration is `own`, for a file with the names of Diffusers or transformers.

    Raises:
        ModelError: the file holds something else, or is quantised.
    """
    if what := _kind(header.tensors, _WHOLE + _OTHERS):
        kind = what.partition(";")[0]
        raise ModelError(f"{name} is {kind}; expected the {component} alone, with the tensor names of Diffusers")
    _require_floats(component, {key: one for key, one in header.tensors.items() if not is_buffer(key)})
    part = Part("vae", "")
    if component != "vae" or not _has(header.tensors, "encoder.down."):
        return None, dict(own)
    layout = Layout(
        title="an autoencoder (VAE)",
        pipeline="",
        marks=(),
        parts={component: part},
        configs_file="",
        assumed_prediction="",
    )
    return layout, _sized(header, component, part, own)


def said_prediction(header: Header) -> str | None:
    """Return the prediction type that the file gives, None if it gives none.

    A tensor named `v_pred` is a convention for velocity prediction; `modelspec.prediction_type` is a key of Stability
    AI's model metadata specification.
    """
    if "v_pred" in header.tensors:
        return "v_prediction"
    said = header.metadata.get("modelspec.prediction_type", "")
    return {"epsilon": "epsilon", "v": "v_prediction"}.get(said)


def original_name(key: str, part: Part) -> str:
    """Return a tensor's name inside its part. Some old files leave `text_model` out of CLIP's names."""
    name = key.removeprefix(part.prefix)
    if part.kind == "clip" and re.match(r"(embeddings|encoder|final_layer_norm)\.", name):
        return f"text_model.{name}"
    return name


def is_buffer(name: str) -> bool:
    """Return whether a text encoder's tensor is not a weight: the position ids 0 … 76, or CLIP's logit scale."""
    return name.endswith("position_ids") or name == "logit_scale"


def _scheduler(header: Header, skeleton: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    config = {**skeleton, "prediction_type": said_prediction(header) or layout.assumed_prediction}
    if "ztsnr" in header.tensors:
        # The model was trained on a schedule that ends in pure noise (Lin et al. 2023, arXiv:2305.08891, section 3.1).
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if config["_class_name"] == "PNDMScheduler":  # which does not support this
            del config["skip_prk_steps"]
            config |= {"_class_name": "DDIMScheduler", "clip_sample": False}
    return config


def _kind(names: Iterable[str], kinds: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    """Return the first kind of file that has a tensor of one of these names; None if it is of no such kind."""
    names = list(names)
    return next((what for pattern, what in kinds if any(map(pattern.search, names))), None)


def _has(names: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
