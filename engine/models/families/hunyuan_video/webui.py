"""ComfyUI's names of HunyuanVideo's layers (comfy/ldm/hunyuan_video/model.py), some of which are parts of larger ones.

No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_BLOCKS: Final = {
    "transformer_blocks": "double_blocks",
    "single_transformer_blocks": "single_blocks",
    "context_embedder.token_refiner.refiner_blocks": "txt_in.individual_token_refiner.blocks",
}
_LAYERS: Final = {
    "double_blocks": {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        **dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    },
    "single_blocks": {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1"),
        "proj_out": "linear2",
        "norm.linear": "modulation.lin",
    },
    "txt_in.individual_token_refiner.blocks": {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "self_attn.qkv"),
        "attn.to_out.0": "self_attn.proj",
        "norm_out.linear": "adaLN_modulation.1",
        "ff.net.0.proj": "mlp.0",
        "ff.net.2": "mlp.2",
    },
}
"""Block in ComfyUI -> Diffusers' name of a layer in it -> ComfyUI's."""
_EMBEDDERS: Final = {
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
    "context_embedder.time_text_embed.timestep_embedder": "txt_in.t_embedder",
    "context_embedder.time_text_embed.text_embedder": "txt_in.c_embedder",
}
_OTHERS: Final = {
    "x_embedder.proj": "img_in.proj",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    **{
        f"{own}.linear_{number}": f"{name}.{layer}"
        for own, name in _EMBEDDERS.items()
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
}
_IN_BLOCK: Final = re.compile(rf"({'|'.join(map(re.escape, _BLOCKS))})\.(\d+)\.(.+)")
_PARTS: Final = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2, "proj_mlp": 3}
"""Layer -> how many parts are before it in the larger layer."""


def name(module: str) -> str:
    """Return ComfyUI's name of a layer, or of the larger layer that it is a part of. Raises KeyError."""
    found = _IN_BLOCK.fullmatch(module)
    if not found:
        return _OTHERS[module]
    block = _BLOCKS[found[1]]
    return f"{block}.{found[2]}.{_LAYERS[block][found[3]]}"


def rows(transformer: Mapping[str, Any], module: str) -> tuple[int, int] | None:
    """Return the place of a layer in a larger one, as in `FamilySpec.webui_rows`.

    The last modulation has the scale before the shift in Diffusers, and after it in ComfyUI.

    Args:
        transformer: the transformer's configuration.
        module: Diffusers' name of a layer.
    """
    width = int(transformer.get("num_attention_heads", 24)) * int(transformer.get("attention_head_dim", 128))
    if module == "norm_out.linear":
        return width, 2 * width
    part = _PARTS.get(module.rpartition(".")[2])
    if part is None:
        return None
    is_single = module.startswith("single_transformer_blocks.")
    inner = int(width * float(transformer.get("mlp_ratio", 4.0))) if is_single else 0
    return part * width, 3 * width + inner
