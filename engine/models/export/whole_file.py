"""A whole model in one safetensors file with the original names, for ComfyUI and the web interfaces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import diffusers
import torch
from transformers import CLIPTextConfig

from engine.core.errors import ModelError
from engine.core.files.built_beside import Streamed
from engine.core.messages import listing
from engine.models.export.model import TrainedModel
from engine.models.export.weights import Sources, Weights, with_dtype
from engine.models.single_file import layouts
from engine.models.single_file.header import Header, Tensor
from engine.models.single_file.layouts import LAYOUTS, Layout, Part
from engine.models.single_file.original_names import Place, place, plain_name
from engine.results import safetensors_file
from engine.results.safetensors_file import Source

_SPECIFICATION: Final = "1.0.1"
_IMPLEMENTATION: Final = "https://github.com/Stability-AI/generative-models"
"""The code whose names the file has, in the words of the metadata specification."""
_NOT_COMPUTED: Final = frozenset(
    {
        *("_class_name", "architectures", "model_type", "sample_size", "projection_dim", "attention_dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "center_input_sample", "upcast_attention", "force_upcast"),
    }
)
"""Keys of the layouts' configurations that change nothing, or only the precision of a computation. A projection's width
shows in the shape of its weight."""
_LOGIT_SCALE: Final = 4.6052
"""ln 100, the largest value that CLIP's training allows (Radford et al. 2021, arXiv:2103.00020, section 2.5)."""


@dataclass(frozen=True, slots=True)
class _Piece:
    source: Source
    place: Place


def file_of(model: TrainedModel, dtype: torch.dtype | None) -> Streamed:
    """Return the file.

    Args:
        model: the model.
        dtype: the dtype of all weights; None is that of the denoiser's.

    Raises:
        ModelError: the model has settings that such a file cannot express; the message names them.
    """
    wanted = dtype or model.weights[model.base.family.denoiser].dtype
    layout = _layout(model)
    sources: dict[str, Source] = {}
    for component, part in layout.parts.items():
        sources |= _part(part, with_dtype(model.weights[component], wanted), wanted)
    metadata = _metadata(model)
    _require_same(model, layout, sources, metadata)
    for mark in _marks(model):
        sources[mark] = safetensors_file.source_of(torch.empty(0, dtype=wanted))
    size = sum(source.num_bytes for source in sources.values())
    return Streamed(size, lambda: safetensors_file.pieces(sources, dict(sorted(metadata.items()))))


def _part(part: Part, weights: Weights, dtype: torch.dtype) -> dict[str, Source]:
    """Return a component's tensors by their names in the file."""
    pieces: dict[str, list[_Piece]] = {}
    for own, source in weights.tensors.items():
        try:
            where = place(part.kind, plain_name(part.kind, own), weights.config)
        except (KeyError, ValueError):
            raise ModelError(
                f"the model's {own} has no name in a single file: use --format diffusers for this model"
            ) from None
        pieces.setdefault(where.name, []).append(_Piece(source, where))
    found = {f"{part.prefix}{name}": _joined(name, own) for name, own in pieces.items()}
    return found | (_unused_by_open_clip(part, weights, found, dtype) if part.kind == "open_clip" else {})


def _joined(name: str, pieces: Sequence[_Piece]) -> Source:
    """Return a tensor of the file, made of one tensor of the component or of three."""
    ordered = sorted(pieces, key=lambda piece: piece.place.third or 0)
    first, where = ordered[0].source, ordered[0].place
    if len(ordered) != (1 if where.third is None else 3):
        raise ModelError(f"the model's weights for {name} are incomplete")
    shape = first.shape
    if where.is_transposed:
        shape = shape[::-1]
    elif where.is_convolution:
        shape = (*shape[:2], 1, 1)
    elif where.third is not None:
        shape = (sum(piece.source.shape[0] for piece in ordered), *shape[1:])
    return Source(shape, first.dtype, partial(_join, ordered, shape))


def _join(pieces: Sequence[_Piece], shape: tuple[int, ...]) -> torch.Tensor:
    tensors = [piece.source.read() for piece in pieces]
    tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return (tensor.T if pieces[0].place.is_transposed else tensor).reshape(shape)


def _unused_by_open_clip(part: Part, weights: Weights, found: Sources, dtype: torch.dtype) -> dict[str, Source]:
    """Return tensors that OpenCLIP's code expects, and of which no value is used.

    Stable Diffusion 2.x uses the states before the last layer, so Diffusers leaves out that layer and the projection;
    the last layer that there is takes its place.
    """
    scale = torch.full((), _LOGIT_SCALE, dtype=dtype)
    unused = {f"{part.prefix}logit_scale": safetensors_file.source_of(scale)}
    if f"{part.prefix}text_projection" in found:
        return unused
    count = int(weights.config["num_hidden_layers"])
    last, added = (f"{part.prefix}transformer.resblocks.{number}." for number in (count - 1, count))
    unused |= {name.replace(last, added): source for name, source in found.items() if name.startswith(last)}
    width = int(weights.config["hidden_size"])
    unused[f"{part.prefix}text_projection"] = safetensors_file.source_of(torch.eye(width, dtype=dtype))
    return unused


# --- which layout, and whether it says all there is to say ---


def _layout(model: TrainedModel) -> Layout:
    """Return the layout of the base model's file, or the one whose fixed settings are nearest to the model's."""
    if model.base.single_file is not None:
        return model.base.single_file.layout
    own = [layout for layout in LAYOUTS if layout.pipeline == model.base.family.pipeline]
    if not own:
        raise ModelError(f"there is no format in one file for a {model.base.family.pipeline}: use --format diffusers")

    def distance(layout: Layout) -> int:
        known = layout.skeleton()
        return sum(len(_differing(known[name], model.config(name), fixed_only=True)) for name in layout.parts)

    return min(own, key=distance)


_FIXED: Final = frozenset({"hidden_act", "use_linear_projection", "attention_head_dim"})
"""Settings in which the layouts of one pipeline differ; no two of them in all."""


def _require_same(model: TrainedModel, layout: Layout, sources: Sources, metadata: Mapping[str, str]) -> None:
    """Check that this program, like other readers, would read the model's own settings from the file.

    A file has no configurations: what the shapes of its tensors do not show is fixed by the layout.
    """
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header = Header({key: Tensor(names[one.dtype], one.shape) for key, one in sources.items()}, metadata)
    read = layouts.configurations(header, layouts.detect(header, model.title))
    problems = [
        f"{component}: {key} is {found!r}, and {assumed!r} would be read"
        for component in layout.parts
        for key, assumed, found in _differing(read[component], model.config(component))
    ]
    if problems:
        raise ModelError(
            f"a single file cannot say all settings of this model ({listing(problems, str)}): use --format diffusers"
        )


def _differing(
    read: Mapping[str, Any], own: Mapping[str, Any], *, fixed_only: bool = False
) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ: their keys, the values that a reader assumes, and the model's."""
    defaults = _defaults(read)
    found = []
    for key, assumed in read.items():
        value = own.get(key, defaults.get(key, assumed))
        if key not in _NOT_COMPUTED and not _is_same(assumed, value) and (not fixed_only or key in _FIXED):
            found.append((key, assumed, value))
    return found


def _is_same(one: Any, other: Any) -> bool:
    """Return whether settings are equal; a number for all levels equals a list of it."""
    first, second = (list(value) if isinstance(value, list | tuple) else value for value in (one, other))
    if isinstance(first, list) != isinstance(second, list):
        many, single = (first, second) if isinstance(first, list) else (second, first)
        return all(value == single for value in many)
    return bool(first == second)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the component's class takes for keys that a configuration does not have."""
    if "architectures" in config:
        found: dict[str, Any] = CLIPTextConfig().to_dict()
        return found
    parameters = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


# --- metadata ---


def _metadata(model: TrainedModel) -> dict[str, str]:
    """Return the metadata of Stability AI's model metadata specification, without a clock time."""
    known = model.base.family.webui_metadata(model.config, model.prediction_type)
    own = {key: value for key, value in known.items() if key.startswith("modelspec.")}
    return {
        **own,
        "format": "pt",
        "modelspec.sai_model_spec": _SPECIFICATION,
        "modelspec.architecture": own["modelspec.architecture"].partition("/")[0],
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": model.title,
        "modelspec.resolution": f"{model.resolution}x{model.resolution}",
    }


def _marks(model: TrainedModel) -> list[str]:
    """Return the names of empty tensors by which readers know velocity prediction, and a schedule that ends in noise.

    ComfyUI (comfy/supported_models.py) and Forge look for them in models of the XL kind, this program in all.
    """
    if model.prediction_type != "v_prediction":
        return []
    return ["v_pred", *(["ztsnr"] if model.ends_in_noise else [])]
