"""A published LoRA that is merged or written in another form, against PEFT's own merging and reading."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load, save_file

from engine.core.errors import CheckpointError, TaskError
from engine.models.export.weights import Weights, with_dtype
from engine.models.registry import FAMILIES
from engine.results.safetensors_file import source_of
from engine.training.methods.lora import published
from engine.training.methods.lora.formats import webui_metadata
from engine.training.methods.lora.formats.start_file import LORA_FILE, PEFT_CONFIG
from engine.training.methods.lora.spec import WEBUI_FILE

SPEC = FAMILIES["StableDiffusionPipeline"]
RANK = 24
LAYERS = {
    "linear": lambda: torch.nn.Linear(320, 640),
    "pointwise": lambda: torch.nn.Conv2d(48, 64, 1),
    "convolution": lambda: torch.nn.Conv2d(48, 64, 3, padding=1),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, make in LAYERS.items():
            setattr(self, name, make())
        self.norm = torch.nn.LayerNorm(8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Model()


@pytest.fixture
def lora(model, tmp_path):
    """A LoRA of the model's three layers in a checkpoint's folder, in both formats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tensors, webui = {}, {}
        for name in LAYERS:
            out, inner, *kernel = getattr(model, name).weight.shape
            down, up = torch.randn(RANK, inner, *kernel), torch.randn(out, RANK, *[1] * len(kernel))
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            webui |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
            webui[f"lora_unet_{name}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, tmp_path / LORA_FILE)
    (tmp_path / WEBUI_FILE).write_bytes(webui_metadata.serialise(webui, {"ss_steps": "5"}))
    return published.load(tmp_path, SimpleNamespace())


def weights_of(model, dtype=torch.float32):
    return Weights(config={}, tensors={name: source_of(t.to(dtype)) for name, t in model.state_dict().items()})


def read(weights):
    return {name: source.read() for name, source in weights.tensors.items()}


def merged_by_peft(model, lora, strength):
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS))
    adapted = inject_adapter_in_model(config, model)
    for name in LAYERS:
        layer = getattr(adapted, name)
        layer.lora_A["default"].weight.data = lora.tensors[f"unet.{name}.lora_A.weight"].clone()
        layer.lora_B["default"].weight.data = lora.tensors[f"unet.{name}.lora_B.weight"].clone()
        layer.scale_layer(strength)
        layer.merge()
    return {name: getattr(adapted, name).get_base_layer().weight.detach() for name in LAYERS}


@pytest.mark.parametrize("strength", [1.0, 0.7, -1.0])
def test_merged_weights_are_pefts_bit_for_bit(model, lora, strength):
    found = read(lora.weights("unet", weights_of(model), SPEC, strength))
    untouched = model.state_dict()["norm.weight"].clone()
    expected = merged_by_peft(model, lora, strength)
    assert all(torch.equal(found[f"{name}.weight"], expected[name]) for name in LAYERS)
    assert torch.equal(found["norm.weight"], untouched)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32_and_rounded_once(model, lora, stored):
    base = weights_of(model, stored)
    whole = read(with_dtype(lora.weights("unet", base, SPEC, 1.0), torch.float32))
    as_stored = read(with_dtype(lora.weights("unet", base, SPEC, 1.0), None))
    expected = read(lora.weights("unet", weights_of(model.to(stored).to(torch.float32)), SPEC, 1.0))
    assert all(torch.equal(whole[name], expected[name]) for name in expected)
    assert all(torch.equal(as_stored[name], expected[name].to(stored)) for name in expected)
    assert not torch.equal(whole["linear.weight"], as_stored["linear.weight"].float())


def test_a_layer_that_the_model_does_not_have(model, lora):
    base = weights_of(model)
    without = {name: source for name, source in base.tensors.items() if name != "linear.weight"}
    with pytest.raises(CheckpointError, match=r"no layer for unet.linear.lora_A.weight"):
        lora.weights("unet", Weights(config={}, tensors=without), SPEC, 1.0)
    other = {**base.tensors, "linear.weight": source_of(torch.zeros(640, 321))}
    with pytest.raises(CheckpointError, match=r"does not fit the base model: unet.linear"):
        lora.weights("unet", Weights(config={}, tensors=other), SPEC, 1.0)


def bytes_of(streamed):
    return b"".join(map(bytes, streamed.pieces()))


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_alone_for_diffusers(lora, name, dtype):
    found = load(bytes_of(lora.alone("diffusers", 0.5, name)))
    assert found.keys() == lora.tensors.keys()
    for key, tensor in lora.tensors.items():
        assert torch.equal(found[key], (tensor * 0.5 if "lora_B" in key else tensor).to(dtype))


def test_alone_for_web_interfaces(lora):
    data = bytes_of(lora.alone("webui", 2.0, "fp16"))
    found = load(data)
    up = lora.tensors["unet.linear.lora_B.weight"]
    assert torch.equal(found["lora_unet_linear.lora_up.weight"], (up * 2).to(torch.float16))
    assert found["lora_unet_linear.alpha"] == RANK
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert metadata["ss_steps"] == "5" and len(metadata["sshs_model_hash"]) == 64
    unscaled = lora.alone("webui", 1.0, "fp32")
    assert bytes_of(unscaled) == (lora.folder / WEBUI_FILE).read_bytes()


def test_alone_for_peft(model, lora, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name, content in lora.alone("peft", 1.0, "fp32").items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else bytes_of(content))
    x = torch.ones(2, 320)
    before = model.linear(x)
    adapted = PeftModel.from_pretrained(model, folder)
    down, up = (lora.tensors[f"unet.linear.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(adapted.base_model.model.linear(x), before + x @ down.T @ up.T)
    assert json.loads((folder / PEFT_CONFIG).read_bytes())["r"] == RANK


def test_peft_has_no_form_for_several_models(lora):
    both = published.PublishedLora(lora.folder, {**lora.tensors, "text_encoder.a.lora_A.weight": torch.ones(1, 1)})
    with pytest.raises(TaskError, match="--layout diffusers"):
        both.alone("peft", 1.0, "fp32")


def test_values_beyond_the_range_of_a_precision(lora):
    with pytest.raises(TaskError, match=r"beyond the range of torch.float16; choose bf16 or fp32"):
        bytes_of(lora.alone("diffusers", 1e6, "fp16"))
