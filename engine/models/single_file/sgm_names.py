"""Translate the module names of a Diffusers UNet to those of Stability AI's code (generative-models).

There the UNet is three flat lists: each resnet of the downward path, with its attention, and each downsampler is one
of `input_blocks`, each resnet of the upward path one of `output_blocks`. LoRA files for XL use these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_OUTSIDE_BLOCKS: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNETS: Final = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


@dataclass(frozen=True, slots=True)
class SgmNames:
    """The names of one UNet's layers with weights."""

    resnets: tuple[int, ...]
    """Resnets in each block of the downward path; the upward path has one more in each, in reverse order."""
    attended: tuple[bool, ...]
    """True for each block of the upward path that has attention."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the names for the configuration of a UNet2DConditionModel."""
        layers, blocks = config["layers_per_block"], len(config["down_block_types"])
        resnets = (layers,) * blocks if isinstance(layers, int) else tuple(layers)
        return cls(resnets, tuple(name.startswith("CrossAttn") for name in config["up_block_types"]))

    def name(self, module: str) -> str:
        """Return a layer's name in Stability AI's code for its name in Diffusers, both with dots.

        Raises:
            KeyError: it is not a layer with weights of such a UNet.
        """
        if module in _OUTSIDE_BLOCKS:
            return _OUTSIDE_BLOCKS[module]
        path, _, rest = module.partition(".")
        if path == "mid_block":
            kind, index, inner = rest.split(".", 2)
            # resnet, attention, resnet, …
            return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{_inside(kind, inner)}"
        block, kind, index, inner = rest.split(".", 3)
        if path == "down_blocks":
            return self._downward(int(block), kind, int(index), inner)
        return self._upward(int(block), kind, int(index), inner)

    def _downward(self, block: int, kind: str, index: int, inner: str) -> str:
        # conv_in comes first, and a downsampler after each earlier block's resnets.
        first = 1 + sum(self.resnets[:block]) + block
        if kind == "downsamplers":
            return f"input_blocks.{first + self.resnets[block]}.0.op"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{_inside(kind, inner)}"

    def _upward(self, block: int, kind: str, index: int, inner: str) -> str:
        resnets = self.resnets[::-1]
        first = sum(resnets[:block]) + block
        if kind == "upsamplers":  # follows the block's last resnet and its attention, in the same place of the list
            return f"output_blocks.{first + resnets[block]}.{1 + self.attended[block]}.{inner}"
        return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{_inside(kind, inner)}"


def _inside(kind: str, inner: str) -> str:
    return _IN_RESNETS[inner] if kind == "resnets" else inner
