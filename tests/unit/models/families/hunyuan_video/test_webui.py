"""A LoRA with ComfyUI's names, of layers that it has joined, beside Diffusers' reader of such files."""

import functools
from types import SimpleNamespace

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

from engine.models.families.hunyuan_video import webui
from engine.models.families.hunyuan_video.spec import SPEC
from engine.training.methods.lora.formats.files import webui_state
from engine.training.methods.lora.targets import is_target

SHALLOW = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}
"""As wide as the published model: Diffusers' reader knows no other width."""
OF_ORIGINAL = {
    "img_attn.": "img_attn_",
    "txt_attn.": "txt_attn_",
    "_mlp.0": "_mlp.fc1",
    "_mlp.2": "_mlp.fc2",
    "mod.lin": "mod.linear",
    "modulation.lin": "modulation.linear",
    "lora_down": "lora_A",
    "lora_up": "lora_B",
}
"""ComfyUI's names -> those of the original model, which Diffusers reads."""


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**SHALLOW)
    linear = torch.nn.Linear
    return {name: layer.weight.shape for name, layer in transformer.named_modules() if isinstance(layer, linear)}


def adapter(shapes):
    """A LoRA of these layers, of other ranks for other layers."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for number, (name, (outer, inner)) in enumerate(shapes.items()):
        rank = 1 + number % 2
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, inner, generator=draw)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(outer, rank, generator=draw)
    return SimpleNamespace(state=lambda: tensors, initial={}, strength=1.0)


def written(shapes):
    return webui_state(
        adapter(shapes),
        lambda component, module: f"diffusion_model.{webui.name(module)}",
        lambda module: SPEC.webui_rows(lambda part: SHALLOW, module.removeprefix("transformer.")),
    )


def test_every_layer_has_a_name(shapes):
    names = {webui.name(module) for module in shapes}
    joined = [module for module in shapes if SPEC.webui_rows(lambda part: SHALLOW, module)]
    assert len(joined) == 3 + 3 + 4 + 3 + 1
    assert len(names) == len(shapes) - len(joined) + 4 + 1
    with pytest.raises(KeyError):
        webui.name("transformer_blocks.0.attn")


@pytest.mark.parametrize("which", ["default", "blocks"])
def test_diffusers_reads_the_same_changes(shapes, which):
    """Its reader does not know the rows of the layers of the refiner, and ends at the blocks."""
    own = is_target(SPEC.lora_targets) if which == "default" else lambda name: "_blocks." in name
    chosen = {name: shape for name, shape in shapes.items() if own(name) and not name.startswith("context_")}
    file = {}
    for own_name, tensor in written(chosen).items():
        name = functools.reduce(lambda found, pair: found.replace(*pair), OF_ORIGINAL.items(), own_name)
        if not name.endswith(".alpha"):
            file[name] = tensor
        else:
            assert int(tensor) == len(file[f"{name.removesuffix('.alpha')}.lora_A.weight"])
    read = _convert_hunyuan_video_lora_to_diffusers(file)
    mine = adapter(chosen).state()
    for name in chosen:
        up, down = (read.pop(f"transformer.{name}.lora_{part}.weight") for part in "BA")
        own_up, own_down = (mine[f"transformer.{name}.lora_{part}.weight"] for part in "BA")
        shown = torch.randn(down.shape[1], 2, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(up @ (down @ shown), own_up @ (own_down @ shown), rtol=1e-4, atol=1e-4)
    assert all(not tensor.any() for name, tensor in read.items() if "lora_B" in name), "rows of no layer change nothing"


def test_the_last_modulation_is_turned_round(shapes):
    """Scale and shift have changed places."""
    one = {"norm_out.linear": shapes["norm_out.linear"]}
    up = written(one)["diffusion_model.final_layer.adaLN_modulation.1.lora_up.weight"]
    scale, shift = adapter(one).state()["transformer.norm_out.linear.lora_B.weight"].chunk(2)
    assert torch.equal(up, torch.cat([shift, scale]))
