"""What kohya's sd-scripts make of a LoRA file: a program, so that its modules never meet ours.

    python read_kohya.py CHECKOUT LORA LAYOUT CONFIGS

CHECKOUT is a checkout of sd-scripts, LAYOUT `sd1`, `sd2` or `xl`, CONFIGS JSON with the text encoders' configurations.
Builds sd-scripts' own UNet and transformers' text encoders without memory, its LoRA network from the file, and prints
JSON: the layer's name there -> the number in the up matrix that is applied to it, and the file's keys that were left.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import diffusers  # noqa: F401  # before anything stands in for what it looks for
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


class Hollow(ModuleType):
    """A module whose every name is an empty class: image processing, which nothing here does."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Wrapped(nn.Module):
    """A text encoder under the names of transformers 4, which sd-scripts is written for."""

    def __init__(self, config):
        super().__init__()
        with_projection = config["architectures"] == ["CLIPTextModelWithProjection"]
        model = (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(CLIPTextConfig(**config))
        self.text_model = model.text_model if with_projection else model


def main(checkout, lora, layout, configs):
    sys.path.insert(0, checkout)
    for name in ("torchvision", "cv2", "einops"):
        sys.modules[name] = Hollow(name)
    from library.original_unet import UNet2DConditionModel
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    from networks.lora import create_network_from_weights

    configs = json.loads(Path(configs).read_text())
    with torch.device("meta"):
        encoders = {name: Wrapped(config) for name, config in configs.items()}
        if layout == "xl":
            unet = SdxlUNet2DConditionModel()
        elif layout == "sd2":
            unet = UNet2DConditionModel(
                sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
            )
        else:
            unet = UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
    places = {id(module): f"unet.{name}" for name, module in unet.named_modules()}
    for encoder, root in encoders.items():
        places |= {id(module): f"{encoder}.{name}" for name, module in root.named_modules()}
    listed = list(encoders.values())
    network, weights = create_network_from_weights(
        1.0, None, None, listed if layout == "xl" else listed[0], unet, weights_sd=load_file(lora)
    )
    loras = [*network.text_encoder_loras, *network.unet_loras]
    found = {entry.lora_name: places[id(entry.org_module)] for entry in loras}
    network.apply_to(listed, unet, apply_text_encoder=True, apply_unet=True)
    info = network.load_state_dict(weights, strict=False)
    applied = {found[entry.lora_name]: entry.lora_up.weight.flatten()[0].item() for entry in loras}
    assert all(entry.scale == 1.0 for entry in loras)
    print(json.dumps({"applied": applied, "missing": info.missing_keys, "unwanted": info.unexpected_keys}))


if __name__ == "__main__":
    main(*sys.argv[1:])
