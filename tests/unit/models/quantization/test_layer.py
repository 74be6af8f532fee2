"""Quantised layers: the product with the dequantised weight, of which nothing is kept; and whole denoisers of them."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from engine.core.errors import ModelError
from engine.models import registry
from engine.models.family import LoadArgs
from engine.models.loading.modules import load_module
from engine.models.quantization.layer import QuantisedLinear
from engine.models.quantization.rule import is_in_a_block
from engine.task.task import Lora
from engine.training.methods.lora.adapter import attach
from tests.support import tiny
from tests.support.fake_memory import LiveBytes
from tests.support.tiny_flux import build_flux

CPU = torch.device("cpu")
FORMATS = ("int8", "fp8", "nf4")
CLASSES = {"unet": UNet2DConditionModel, "transformer": FluxTransformer2DModel}


def layer_of(quantization="nf4", *, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return QuantisedLinear(torch.nn.Linear(12, 20, bias=bias), quantization, device=CPU, dtype=dtype)


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_it_computes_as_a_layer_with_the_dequantised_weight(quantization, bias, precision):
    layer = layer_of(quantization, bias=bias, dtype=precision or torch.float32)
    plain = torch.nn.Linear(12, 20, bias=bias, dtype=layer.dtype)
    plain.weight.data, plain.bias = layer.weight, layer.bias
    found = []
    for one in (layer, plain.requires_grad_(False)):
        x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            y = one(x)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
        found.append((y, gradient))
    for ours, expected in zip(*found, strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("is_adapted", [False, True])
def test_nothing_of_the_dequantised_weight_is_kept_for_the_backward_pass(is_adapted):
    root = torch.nn.ModuleDict(
        {"to_q": QuantisedLinear(torch.nn.Linear(512, 512), "nf4", device=CPU, dtype=torch.float32)}
    )
    if is_adapted:
        spec = registry.FAMILIES["FluxPipeline"]
        attach({spec.denoiser: root}, Lora(rank=2, target_modules=("to_q",)), 0, spec=spec)
    x = torch.zeros(3, 512, requires_grad=True)
    with LiveBytes([x, *root.parameters(), *root.buffers()]) as live:
        y = root["to_q"](x)
        kept = live.now
        y.sum().backward()
    assert kept < 64 * 512 < 4 * 512 * 512 <= live.peak


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"unet": tiny.build_sd(root / "sd"), "transformer": build_flux(root / "flux")}


def load(folder, component, quantization, dtype=torch.float32):
    args = LoadArgs(
        folder=folder,
        variants={component: None},
        dtype=dtype,
        quantised={component: quantization} if quantization else {},
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return load_module(CLASSES[component], args, component)


def linears(module, cls=torch.nn.Linear):
    return {name: layer for name, layer in module.named_modules() if type(layer) is cls}


@pytest.mark.parametrize("component", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_denoiser_is_loaded_with_the_linear_layers_of_its_blocks_quantised(folders, component, dtype):
    plain, module = (load(folders[component], component, one, dtype) for one in (None, "int8"))
    expected = {name for name in linears(plain) if is_in_a_block(name)}
    assert linears(module, QuantisedLinear).keys() == expected
    assert not linears(module).keys() & expected
    stored = load(folders[component], component, None)  # the files' own precision
    kept = {name.rpartition(".")[0] for name, _ in stored.named_parameters()} - expected
    for name, tensor in plain.named_parameters():
        if name.rpartition(".")[0] in kept or name.endswith("bias"):
            assert torch.equal(module.get_parameter(name), tensor) and not module.get_parameter(name).requires_grad
    for name in sorted(expected)[:3]:
        own = QuantisedLinear(stored.get_submodule(name), "int8", device=CPU, dtype=dtype)
        assert torch.equal(module.get_submodule(name).qweight, own.qweight), "from the weights as they are stored"


def test_weights_that_are_not_finite_are_refused(folders, tmp_path):
    folder = build_flux(tmp_path / "flux")
    (path,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(path)
    tensors["transformer_blocks.1.attn.to_k.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"transformer_blocks\.1\.attn\.to_k: a weight is not finite; use another"):
        load(folder, "transformer", "nf4")
