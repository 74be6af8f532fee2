"""A published LoKr that is merged or written in another form, against PEFT's own merging and reading."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoKrConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load, save_file

from engine.core.canonical_json import canonical_json
from engine.core.errors import CheckpointError, TaskError
from engine.models.export.weights import Weights
from engine.models.registry import FAMILIES
from engine.results.safetensors_file import source_of
from engine.task.task import Lora
from engine.training.methods.lokr import published
from engine.training.methods.lokr.split import split
from engine.training.methods.lokr.start_file import peft_config
from engine.training.methods.lora.formats import webui_metadata
from engine.training.methods.lora.formats.start_file import LORA_FILE, METADATA_KEY
from engine.training.methods.lora.spec import WEBUI_FILE

SPEC = FAMILIES["StableDiffusionPipeline"]
RANK = 6
LAYERS = {
    "linear": lambda: torch.nn.Linear(320, 640),
    "whole": lambda: torch.nn.Linear(100, 49),
    "pointwise": lambda: torch.nn.Conv2d(320, 640, 1),
    "convolution": lambda: torch.nn.Conv2d(320, 320, 3, padding=1),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, make in LAYERS.items():
            setattr(self, name, make())


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Model()


@pytest.fixture
def lokr(model, tmp_path):
    """A LoKr of the model's layers in a checkpoint's folder, in both formats."""
    generator, tensors, webui = torch.Generator().manual_seed(4), {}, {}
    for name in LAYERS:
        for end, shape in split(name, tuple(getattr(model, name).weight.shape), RANK, None).shapes.items():
            tensors[f"unet.{name}{end}"] = torch.randn(shape, generator=generator)
            webui[f"lora_unet_{name}{end}"] = tensors[f"unet.{name}{end}"]
    config = peft_config(Lora(rank=RANK), [f"unet.{name}" for name in LAYERS])
    save_file(tensors, tmp_path / LORA_FILE, {METADATA_KEY: canonical_json(config).decode()})
    (tmp_path / WEBUI_FILE).write_bytes(webui_metadata.serialise(webui, {"ss_steps": "5"}))
    return published.load(tmp_path, SimpleNamespace())


def weights_of(model):
    return Weights(config={}, tensors={name: source_of(tensor.clone()) for name, tensor in model.state_dict().items()})


def bytes_of(streamed):
    return b"".join(streamed.pieces())


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_merged_weights_are_pefts_bit_for_bit(model, lokr, strength):
    found = lokr.weights("unet", weights_of(model), SPEC, strength)
    merged = {name: source.read().clone() for name, source in found.tensors.items()}
    adapted = inject_adapter_in_model(LoKrConfig(r=RANK, alpha=RANK, target_modules=list(LAYERS)), model)
    for name in LAYERS:
        layer = getattr(adapted, name)
        for end in ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"):
            if f"unet.{name}.{end}" in lokr.tensors:
                getattr(layer, end)["default"].data = lokr.tensors[f"unet.{name}.{end}"].clone()
        layer.scale_layer(strength)
        layer.merge()
        assert torch.equal(merged[f"{name}.weight"], layer.get_base_layer().weight.detach())


@pytest.mark.parametrize("name, size", [("linear", (640, 321)), ("convolution", (320, 320, 5, 5)), ("whole", None)])
def test_another_model_is_refused(model, lokr, name, size):
    base = weights_of(model)
    tensors = {**base.tensors, f"{name}.weight": source_of(torch.ones(size))} if size else dict(base.tensors)
    if not size:
        del tensors[f"{name}.weight"]
    with pytest.raises(CheckpointError, match=rf"does not fit the base model: it changes {name}\.weight"):
        lokr.weights("unet", Weights(config={}, tensors=tensors), SPEC, 1.0)


def test_alone_for_diffusers_at_a_strength(lokr):
    data = bytes_of(lokr.alone("diffusers", 0.5, "fp16"))
    for name, tensor in load(data).items():
        own = lokr.tensors[name]
        assert torch.equal(tensor, (own * 0.5 if name.endswith(".lokr_w1") else own).to(torch.float16))
    assert METADATA_KEY in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def test_alone_for_web_interfaces(lokr):
    assert bytes_of(lokr.alone("webui", 1.0, "fp32")) == (lokr.folder / WEBUI_FILE).read_bytes()
    (lokr.folder / WEBUI_FILE).unlink()
    with pytest.raises(TaskError, match=r"--layout webui: .* so there is no lora_webui\.safetensors"):
        lokr.alone("webui", 1.0, "fp32")


def test_alone_for_peft(model, lokr, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name, content in lokr.alone("peft", 1.0, "fp32").items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else bytes_of(content))
    merged = lokr.weights("unet", weights_of(model), SPEC, 1.0).tensors["linear.weight"].read()
    x = torch.ones(2, 320)
    expected = torch.nn.functional.linear(x, merged, model.linear.bias)
    adapted = PeftModel.from_pretrained(model, folder)
    torch.testing.assert_close(adapted.base_model.model.linear(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"unet.linear.lokr_w1": None},
        {"unet.linear.lokr_w2_a": None},
        {"unet.whole.lokr_w2_a": torch.ones(7, 2)},
        {"unet.linear.lokr_w2_a": torch.ones(7, 5)},
        {"unet.linear.lokr_w1": torch.ones(7)},
        {"unet.linear.lora_A.weight": torch.ones(2, 2)},
    ],
)
def test_a_malformed_file_is_refused(lokr, changes):
    found = {name: tensor for name, tensor in (lokr.tensors | changes).items() if tensor is not None}
    save_file(found, lokr.folder / LORA_FILE, dict(lokr.metadata))
    with pytest.raises(CheckpointError, match="which is not a LoKr's layer"):
        published.load(lokr.folder, SimpleNamespace())


@pytest.mark.parametrize("metadata", [{}, {METADATA_KEY: "[]"}, {METADATA_KEY: "{"}, {METADATA_KEY: "{}"}])
def test_a_file_without_its_metadata_is_refused(lokr, metadata):
    save_file(lokr.tensors, lokr.folder / LORA_FILE, metadata)
    with pytest.raises(CheckpointError, match="has no metadata of a LoKr"):
        published.load(lokr.folder, SimpleNamespace())
