"""Whole models as one file in the original names, from real classes with random weights.

The mapping between the names is written here once more, from Diffusers' to the original ones, so that a mistake of the
engine's way back shows. The sizes are small, and follow what the shapes cannot tell: 32 groups in each normalisation,
8 heads in SD 1.x's UNet, heads of 64 channels elsewhere.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.models.single_file.layouts import LAYOUTS
from engine.models.single_file.vocabulary import MERGES
from tests.support import tiny

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
}
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "xl": "Stable Diffusion XL"}
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {"sd1": "cond_stage_model.transformer.", "xl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {
    "sd2": ("text_encoder", "cond_stage_model.model."),
    "xl": ("text_encoder_2", "conditioner.embedders.1.model."),
}
State = dict[str, torch.Tensor]


def skeleton(layout: str) -> dict[str, dict[str, Any]]:
    """The configurations that the engine ships for a layout."""
    return next(known for known in LAYOUTS if known.title == TITLES[layout]).skeleton()


def small_configs(layout: str) -> dict[str, dict[str, Any]]:
    """The same with small sizes."""
    configs = skeleton(layout)
    is_xl = layout == "xl"
    attends, width = (False, True) if is_xl else (True, False), 128 if is_xl else 64
    configs["unet"] |= {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": width,
        "transformer_layers_per_block": [1, 2] if is_xl else 1,
    }
    if layout != "sd1":
        configs["unet"]["attention_head_dim"] = [1, 1]
    if is_xl:
        configs["unet"] |= {"projection_class_embeddings_input_dim": 64 + 6 * 256}
    configs["vae"] |= {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 64}
    for name in configs:
        if name.startswith("text_encoder"):
            configs[name] |= {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 1,
                "projection_dim": 64,
            }
    return configs


def build(component: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A component with the current generator's random weights; on the meta device without any."""
    cls = CLASSES[component]
    if component.startswith("text_encoder"):
        return cls(CLIPTextConfig(**config)).eval()
    return cls.from_config(dict(config)).eval()


def build_modules(layout: str, *, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Every small component of a layout that has weights."""
    configs = small_configs(layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: build(name, config) for name, config in configs.items() if name in CLASSES}


def write(path: Path, layout: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **extra: torch.Tensor) -> Path:
    """Write a small model of a layout as one file; `extra` are more tensors in it."""
    state = original_state(build_modules(layout, seed=seed), layout)
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({**state, **extra}, path, metadata={"format": "pt"})
    return path


def write_folder(folder: Path, layout: str, *, seed: int = 0) -> Path:
    """The same model in Diffusers' layout."""
    configs = skeleton(layout)
    parts: dict[str, Any] = dict(build_modules(layout, seed=seed))
    parts |= {name: tokenizer(config["pad_token"]) for name, config in configs.items() if name.startswith("tokenizer")}
    parts["scheduler"] = getattr(diffusers, configs["scheduler"]["_class_name"]).from_config(configs["scheduler"])
    if layout != "xl":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with tiny._quiet():
        getattr(diffusers, PIPELINES[layout])(**parts).save_pretrained(folder)
    return folder


def tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's whole tokenizer, from the merges that the engine ships."""
    letters = tiny.byte_letters()
    merges = MERGES.read_text().rstrip("\n").split("\n")
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad_token, model_max_length=77)


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "F16", **metadata: str) -> Path:
    """A safetensors file of zeros that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * (2 if dtype in ("F16", "BF16") else 1)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + offset)
    return path


# --- Diffusers' names -> the original ones ---------------------------------------------------------------------------


def original_state(modules: Mapping[str, torch.nn.Module], layout: str) -> State:
    """All components' weights as the original code of that layout names them."""
    unet, vae = modules["unet"], modules["vae"]
    state = {UNET + unet_name(name, unet.config): tensor for name, tensor in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        is_projection = "attentions" in name and "group_norm" not in name and tensor.ndim == 2
        state[VAE + vae_name(name, len(vae.config.block_out_channels))] = (
            tensor[:, :, None, None] if is_projection else tensor
        )
    if layout in CLIP:
        text = modules["text_encoder"].state_dict()
        state |= {f"{CLIP[layout]}text_model.{name.removeprefix('text_model.')}": text[name] for name in text}
        positions = torch.arange(77)[None]
        state[f"{CLIP[layout]}text_model.embeddings.position_ids"] = positions
    if layout in OPEN_CLIP:
        component, prefix = OPEN_CLIP[layout]
        state |= {
            prefix + name: tensor
            for name, tensor in open_clip_state(modules[component], complete=layout == "sd2").items()
        }
    return {name: tensor.contiguous() for name, tensor in state.items()}


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name: str, config: Any) -> str:
    """A weight of Diffusers' UNet by its original name: the blocks of all resolutions are numbered in one row."""
    stem, _, kind = name.rpartition(".")
    if stem in UNET_ENDS:
        return f"{UNET_ENDS[stem]}.{kind}"
    row = config.layers_per_block + 1
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        number = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{number}.{_inside(found[1], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    way, block, part, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * row}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        has_attention = config.up_block_types[block].startswith("CrossAttn")
        return f"output_blocks.{(block + 1) * row - 1}.{2 if has_attention else 1}.{rest}"
    number = block * row + index + (1 if way == "down" else 0)
    return f"{'input' if way == 'down' else 'output'}_blocks.{number}.{int(part == 'attentions')}.{_inside(part, rest)}"


def _inside(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    layer, _, kind = rest.rpartition(".")
    return f"{RESNET[layer]}.{kind}"


def vae_name(name: str, num_levels: int) -> str:
    """A weight of Diffusers' autoencoder by its original name: the way up is numbered from the full resolution."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{num_levels - 1 - int(m[1])}.block.", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{num_levels - 1 - int(m[1])}.upsample.", name)


OPEN_CLIP_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def open_clip_state(module: torch.nn.Module, *, complete: bool) -> State:
    """A text encoder by OpenCLIP's names; `complete` adds what SD 2.x leaves unused, as its files have."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    state: State = {"logit_scale": torch.tensor(4.6)}
    if "text_projection.weight" in text:
        state["text_projection"] = text.pop("text_projection.weight").T
    for name, tensor in text.items():
        if name in OPEN_CLIP_NAMES:
            state[OPEN_CLIP_NAMES[name]] = tensor
            continue
        layer, rest = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name).groups()
        block = f"transformer.resblocks.{layer}."
        if found := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", rest):
            parts = [text[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            state[f"{block}attn.in_proj_{found[1]}"] = torch.cat(parts)
        elif not re.match(r"self_attn\.[kv]_proj", rest):
            for new, old in (
                ("layer_norm", "ln_"),
                ("self_attn.out_proj", "attn.out_proj"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                rest = rest.replace(new, old)
            state[block + rest] = tensor
    if complete:
        width, num_layers = module.config.hidden_size, module.config.num_hidden_layers
        last = f"transformer.resblocks.{num_layers - 1}."
        extra = {
            name.replace(last, f"transformer.resblocks.{num_layers}."): state[name] + 1
            for name in state
            if name.startswith(last)
        }
        state |= {**extra, "text_projection": torch.ones(width, width, device=state["logit_scale"].device)}
    return state
