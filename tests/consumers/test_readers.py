"""`lora_webui.safetensors` in readers that nobody here wrote, for the published models' sizes.

Every layer gets a number in its up matrix, so that what counts is not that a key is accepted but where it lands.
Diffusers is always there; kohya's sd-scripts and ComfyUI are read from checkouts that SD_SCRIPTS_CHECKOUT and
COMFYUI_CHECKOUT name, and are skipped without.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

from engine.models import registry, single_file
from engine.models.family import LoadArgs
from engine.training.methods.lora.formats import webui_metadata
from tests.support import single_files
from tests.support.abouts import about_of, base_of

HERE = Path(__file__).parent
RANK = 1
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
NUM_LAYERS = {
    # default targets, all layers of the UNet, attention of the text encoders
    "sd1": (128, 282, 48),
    "sd2": (128, 282, 92),
    "xl": (560, 794, 48 + 128),
}
COMFYUI_UNETS = {
    "sd1": {"channel_mult": [1, 2, 4, 4], "depth": [1, 1, 1, 1, 1, 1, 0, 0], "out": [1] * 9 + [0] * 3, "middle": 1},
    "xl": {"channel_mult": [1, 2, 4], "depth": [0, 0, 2, 2, 10, 10], "out": [0] * 3 + [2] * 3 + [10] * 3, "middle": 10},
}
COMFYUI_UNETS["sd2"] = COMFYUI_UNETS["sd1"]
COMFYUI_ENCODERS = {
    "sd1": {"text_encoder": "clip_l"},
    "sd2": {"text_encoder": "clip_h"},
    "xl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
}


class Model:
    """A published model without memory, and its family."""

    def __init__(self, layout, monkeypatch):
        self.layout = layout
        self.configs = single_files.skeleton(layout)
        with torch.device("meta"):
            self.modules = {
                name: single_files.build(name, config)
                for name, config in self.configs.items()
                if name in single_files.CLASSES
            }
        entry = registry.FAMILIES[single_files.PIPELINES[layout]]
        module = importlib.import_module(entry.module)
        monkeypatch.setattr(module, "load_module", lambda cls, args, component, device=None: self.modules[component])
        monkeypatch.setattr(module, "load_tokenizer", lambda args, component: None)
        file = single_file.SingleFile(path=Path(), name="m", layout=None, configs={**self.configs, "": {}})
        self.family = registry.load(
            entry,
            LoadArgs(
                folder=Path(),
                variants={},
                dtype=torch.float32,
                device=torch.device("meta"),
                prediction_type="epsilon",
                single_file=file,
                caption_tokens=75,
            ),
        )

    def layers(self, component, ends=None):
        """The component's linear and convolution layers, by the names that Diffusers' LoRA files have."""
        prefix = "text_model." if component.startswith("text_encoder") else ""
        return {
            f"{component}.{prefix}{name.removeprefix('text_model.')}": layer
            for name, layer in self.modules[component].named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
            and (ends is None or name.endswith(tuple(f".{end}" for end in ends)))
        }

    def encoders(self):
        return [name for name in self.modules if name.startswith("text_encoder")]

    def text_layers(self):
        return {key: layer for name in self.encoders() for key, layer in self.layers(name, TEXT).items()}


@pytest.fixture(params=[layout for layout in NUM_LAYERS if single_files.PIPELINES[layout] in registry.FAMILIES])
def model(request, monkeypatch):
    return Model(request.param, monkeypatch)


def webui_file(model, layers):
    """A LoRA of these layers in the web interfaces' format, layer number n with n + 1 in its up matrix."""
    tensors = {}
    for number, (key, layer) in enumerate(layers.items(), 1):
        name = model.family.webui_name(*key.split(".", 1))
        assert f"{name}.alpha" not in tensors, f"two layers are called {name}"
        out, *inner = layer.weight.shape
        tensors[f"{name}.lora_down.weight"] = torch.ones(RANK, *inner)
        tensors[f"{name}.lora_up.weight"] = torch.full((out, RANK, *[1] * (len(inner) - 1)), float(number))
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


def numbered(layers):
    return {key: float(number) for number, key in enumerate(layers, 1)}


def test_the_numbers_of_layers(model):
    counts = len(model.layers("unet", ATTENTION)), len(model.layers("unet")), len(model.text_layers())
    assert counts == NUM_LAYERS[model.layout]


def read_by_diffusers(model, tensors):
    pipeline = StableDiffusionXLPipeline if model.layout == "xl" else StableDiffusionPipeline
    state, alphas = pipeline.lora_state_dict(dict(tensors), unet_config=model.modules["unet"].config)
    unet = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    found = {f"unet.{key}": value for key, value in convert_unet_state_dict_to_peft(unet).items()}
    if text := {key: value for key, value in state.items() if not key.startswith("unet.")}:
        found |= convert_state_dict_to_peft(text)
    assert set(alphas.values()) <= {float(RANK)}
    ups = {key: value for key, value in found.items() if key.endswith(".lora_B.weight")}
    assert len(found) == 2 * len(ups)
    return {key.removesuffix(".lora_B.weight"): value.flatten()[0].item() for key, value in ups.items()}


@pytest.mark.parametrize("which", ["attention", "all", "text"])
def test_diffusers(model, which):
    layers = {"attention": model.layers("unet", ATTENTION), "all": model.layers("unet"), "text": {}}[which]
    layers |= model.text_layers() if which == "text" else {}
    assert read_by_diffusers(model, webui_file(model, layers)) == numbered(layers)


def checkout(variable, inside):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no checkout")
    assert (Path(folder) / inside).is_file(), f"{variable} is {folder}, which has no {inside}"
    return folder


def run_reader(program, *arguments):
    command = [sys.executable, HERE / program, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_file(model, layers, folder):
    """As the program writes it, metadata and all."""
    tensors = webui_file(model, layers)
    entry = registry.FAMILIES[single_files.PIPELINES[model.layout]]
    metadata = webui_metadata.describe(tensors, about_of(base_of(spec=entry, configs=model.configs)))
    path = folder / "lora_webui.safetensors"
    path.write_bytes(webui_metadata.serialise(tensors, metadata))
    return path


@pytest.mark.slow
def test_kohya(model, tmp_path):
    """Its network has every layer of attention, convolutions and text encoders; not the UNet's outermost layers."""
    folder = checkout("SD_SCRIPTS_CHECKOUT", "networks/lora.py")
    inside = {
        key: layer
        for key, layer in model.layers("unet").items()
        if not key.removeprefix("unet.").startswith(("conv_", "time_embedding", "add_embedding"))
    }
    layers = inside | model.text_layers()
    (tmp_path / "configs.json").write_text(json.dumps({name: model.configs[name] for name in model.encoders()}))
    found = run_reader(
        "read_kohya.py", folder, write_file(model, layers, tmp_path), model.layout, tmp_path / "configs.json"
    )
    assert found["missing"] == found["unwanted"] == []
    assert found["applied"] == {in_kohya(model, key): number for key, number in numbered(layers).items()}


def in_kohya(model, key):
    """Its UNet of SD has Diffusers' names, the one of XL the original ones."""
    component, _, name = key.partition(".")
    if component != "unet" or model.layout != "xl":
        return key
    return f"unet.{single_files.unet_name(f'{name}.weight', model.modules['unet'].config).removesuffix('.weight')}"


@pytest.mark.slow
def test_comfyui(model, tmp_path):
    """Every layer there is."""
    folder = checkout("COMFYUI_CHECKOUT", "comfy/lora.py")
    layers = model.layers("unet") | model.text_layers()
    keys = {key: in_comfyui(model, key) for key in (*model.layers("unet"), *model.text_layers())}
    sizes = COMFYUI_UNETS[model.layout]
    config = {
        "num_res_blocks": [2] * len(sizes["channel_mult"]),
        "channel_mult": sizes["channel_mult"],
        "transformer_depth": sizes["depth"],
        "transformer_depth_output": sizes["out"],
        "transformer_depth_middle": sizes["middle"],
    }
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"keys": list(keys.values()), "unet_config": config}))
    found = run_reader("read_comfyui.py", folder, write_file(model, layers, tmp_path), names)
    assert found["unwanted"] == []
    assert found["applied"] == {keys[key]: number for key, number in numbered(layers).items()}


def in_comfyui(model, key):
    """What ComfyUI's loaded model calls a layer's weight: the original names, and the encoders by their kind."""
    component, _, name = key.partition(".")
    if component == "unet":
        return f"diffusion_model.{single_files.unet_name(f'{name}.weight', model.modules['unet'].config)}"
    return f"{COMFYUI_ENCODERS[model.layout][component]}.transformer.{name}.weight"
