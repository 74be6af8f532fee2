"""Derive the configurations of a model's parts from the shapes of its tensors.

A layout's configuration (`sd1.json` and others) gives what shapes do not show: normalisation groups, activation, the
size of an attention head. Everything else is read from the shapes, so that smaller, larger and distilled models work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.core.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

HEAD_WIDTH: Final = 64
"""Channels of an attention head in CLIP's text encoders, and in the UNets of SD 2.x and XL."""


def unet(shapes: Shapes, skeleton: Mapping[str, Any]) -> Config:
    """Return the configuration of a UNet with the original names (`input_blocks.1.0.…`).

    Raises:
        ModelError: its blocks are irregular, as in some distilled models.
    """
    levels = _unet_levels(shapes)
    middle = _depth(shapes, "middle_block.1")
    if not levels or not middle or any(len(set(level)) != 1 or len(level) != len(levels[0]) for level in levels):
        raise ModelError("the base model's UNet has an irregular shape; use a folder in Diffusers' layout")
    channels = [level[0][0] for level in levels]
    depths = [level[0][1] for level in levels]
    attends = [depth > 0 for depth in depths]
    # Diffusers gives the middle the last level's number of layers, whether that level attends or not.
    layers = [depth or 1 for depth in depths[:-1]] + [middle]
    down, up = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}, {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
    config = {
        **skeleton,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": [down[attend] for attend in attends],
        "up_block_types": [up[attend] for attend in reversed(attends)],
        "transformer_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "cross_attention_dim": _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(_shape(shapes, "middle_block.1.proj_in.weight")) == 2,
    }
    if isinstance(skeleton["attention_head_dim"], list):
        # Diffusers' name is misleading for Stable Diffusion: the value is the number of heads.
        config["attention_head_dim"] = [max(1, width // HEAD_WIDTH) for width in channels]
    if "projection_class_embeddings_input_dim" in skeleton:
        config["projection_class_embeddings_input_dim"] = _shape(shapes, "label_emb.0.0.weight")[1]
    return config


def _unet_levels(shapes: Shapes) -> list[list[tuple[int, int]]]:
    """Return for each resolution of the downward path its residual blocks: output channels, transformer layers."""
    levels: list[list[tuple[int, int]]] = [[]]
    index = 1
    while True:
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            levels.append([])
        elif found := shapes.get(f"{block}.0.in_layers.2.weight"):
            levels[-1].append((found[0], _depth(shapes, f"{block}.1")))
        else:
            return levels
        index += 1


def _depth(shapes: Shapes, attention: str) -> int:
    return _count(shapes, lambda k: f"{attention}.transformer_blocks.{k}.norm1.weight")


def vae(shapes: Shapes, skeleton: Mapping[str, Any]) -> Config:
    """Return the configuration of an autoencoder with the original names (`encoder.down.0.block.0.…`)."""
    num_levels = max(1, _count(shapes, lambda k: f"encoder.down.{k}.block.0.conv1.weight"))
    return {
        **skeleton,
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "block_out_channels": [_shape(shapes, f"encoder.down.{k}.block.0.conv1.weight")[0] for k in range(num_levels)],
        "layers_per_block": _count(shapes, lambda k: f"encoder.down.0.block.{k}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
    }


def clip(shapes: Shapes, skeleton: Mapping[str, Any]) -> Config:
    """Return the configuration of a text encoder with transformers' names (`text_model.embeddings.…`)."""
    tokens, width = _shape(shapes, "text_model.embeddings.token_embedding.weight")[:2]
    return {
        **skeleton,
        "vocab_size": tokens,
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": _count(shapes, lambda k: f"text_model.encoder.layers.{k}.layer_norm1.weight"),
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
    }


def open_clip(shapes: Shapes, skeleton: Mapping[str, Any]) -> Config:
    """Return the configuration of a text encoder with OpenCLIP's names (`transformer.resblocks.0.…`)."""
    tokens, width = _shape(shapes, "token_embedding.weight")[:2]
    config = {
        **skeleton,
        "vocab_size": tokens,
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": _count(shapes, lambda k: f"transformer.resblocks.{k}.ln_1.weight"),
        "intermediate_size": _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "max_position_embeddings": _shape(shapes, "positional_embedding")[0],
    }
    if skeleton["architectures"] == ["CLIPTextModelWithProjection"]:
        config["projection_dim"] = _shape(shapes, "text_projection")[1]
    elif "text_projection" in shapes or config["num_hidden_layers"] == _WHOLE_VIT_H:
        # Stable Diffusion 2.x uses the states before the last layer, so Diffusers leaves that layer out; files that
        # were written from Diffusers' layout do not have it.
        config["num_hidden_layers"] -= 1
    return config


_WHOLE_VIT_H: Final = 24


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) < 2:
        raise ModelError(f"the base model's file is incomplete: {name} is missing or has too few dimensions")
    return found


def _count(shapes: Shapes, name: Callable[[int], str]) -> int:
    """Return the number of consecutive tensors with this name and the numbers 0, 1, …"""
    number = 0
    while name(number) in shapes:
        number += 1
    return number
