"""Place the tensors of Diffusers' layout in a file with the original names: the inverse of reading such a file.

The names are those of CompVis' and Stability AI's code for the UNet and the autoencoder, of transformers or of OpenCLIP
for the text encoders. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.models.single_file.sgm_names import SgmNames

TEXT_ROOT: Final = "text_model."
"""The outer name of a CLIP's layers in files. Version 5 of transformers removed it from a class."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tensor of Diffusers' layout in a file with the original names."""

    name: str
    """The tensor's name there, without the part's prefix."""
    third: int | None = None
    """0, 1 or 2 if it is the first, second or third of equal blocks of rows: queries, keys and values in one tensor."""
    is_transposed: bool = False
    is_convolution: bool = False
    """True for a matrix that is stored there as a convolution with a kernel of one pixel."""


Places = Callable[[str, Mapping[str, Any]], Place]
"""Returns the place of a tensor by its name and the component's configuration. Raises KeyError for an unknown name."""


def place(kind: str, name: str, config: Mapping[str, Any]) -> Place:
    """Return the place of a tensor.

    Args:
        kind: the naming scheme (`layouts.Part.kind`).
        name: the tensor's name in the component in Diffusers' layout.
        config: the component's configuration.

    Raises:
        KeyError: the original code has no such tensor.
    """
    return _PLACES[kind](name, config)


def plain_name(kind: str, name: str) -> str:
    """Return a tensor's name in Diffusers' layout as files on the Hub have it, for any spelling.

    Older files spell the autoencoder's attention in another way, newer ones leave out a text encoder's outer name.
    """
    if kind == "vae":
        return _OLD_ATTENTION.sub(lambda found: f"{found[1]}{_ATTENTION_BEFORE[found[2]]}.", name)
    if kind in ("clip", "open_clip") and not name.startswith((TEXT_ROOT, "text_projection")):
        return f"{TEXT_ROOT}{name}"
    return name


_ATTENTION_BEFORE: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION: Final = re.compile(r"(.*mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")


def _unet(name: str, config: Mapping[str, Any]) -> Place:
    module, _, kind = name.rpartition(".")
    return Place(f"{SgmNames.from_config(config).name(module)}.{kind}")


_VAE_ATTENTION: Final = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_OUTSIDE: Final = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **{
        f"{side}.{new}": f"{side}.{old}"
        for side in ("encoder", "decoder")
        for new, old in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out"))
    },
}
_VAE_BLOCK: Final = re.compile(
    r"(?P<side>encoder|decoder)\.(?:mid_block|(?P<way>down|up)_blocks\.(?P<level>\d+))\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<inner>.+)"
)


def _vae(name: str, config: Mapping[str, Any]) -> Place:
    module, _, kind = name.rpartition(".")
    if module in _VAE_OUTSIDE:
        return Place(f"{_VAE_OUTSIDE[module]}.{kind}")
    found = _VAE_BLOCK.fullmatch(module)
    if found is None:
        raise KeyError(name)
    side, index, inner = found["side"], int(found["index"]), found["inner"]
    if found["kind"] == "attentions":
        is_convolution = kind == "weight" and inner != "group_norm"
        return Place(f"{side}.mid.attn_1.{_VAE_ATTENTION[inner]}.{kind}", is_convolution=is_convolution)
    inner = "nin_shortcut" if inner == "conv_shortcut" else inner
    if found["way"] is None:
        return Place(f"{side}.mid.block_{index + 1}.{inner}.{kind}")
    level = int(found["level"])
    if found["way"] == "up":  # numbered from the full resolution
        level = len(config["block_out_channels"]) - 1 - level
    if found["kind"] == "resnets":
        return Place(f"{side}.{found['way']}.{level}.block.{index}.{inner}.{kind}")
    return Place(f"{side}.{found['way']}.{level}.{found['way']}sample.{inner}.{kind}")


def _clip(name: str, config: Mapping[str, Any]) -> Place:
    return Place(name)


_OPEN_CLIP: Final = {
    f"{TEXT_ROOT}embeddings.token_embedding.weight": Place("token_embedding.weight"),
    f"{TEXT_ROOT}embeddings.position_embedding.weight": Place("positional_embedding"),
    f"{TEXT_ROOT}final_layer_norm.weight": Place("ln_final.weight"),
    f"{TEXT_ROOT}final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", is_transposed=True),
}
_OPEN_CLIP_LAYER: Final = re.compile(rf"{re.escape(TEXT_ROOT)}encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_CLIP_INNER: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_THIRDS: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _open_clip(name: str, config: Mapping[str, Any]) -> Place:
    if name in _OPEN_CLIP:
        return _OPEN_CLIP[name]
    found = _OPEN_CLIP_LAYER.fullmatch(name)
    if found is None:
        raise KeyError(name)
    block, inner, kind = f"transformer.resblocks.{found[1]}", found[2], found[3]
    if inner in _THIRDS:
        return Place(f"{block}.attn.in_proj_{kind}", third=_THIRDS.index(inner))
    return Place(f"{block}.{_OPEN_CLIP_INNER[inner]}.{kind}")


_PLACES: Final[Mapping[str, Places]] = {"unet": _unet, "vae": _vae, "clip": _clip, "open_clip": _open_clip}
