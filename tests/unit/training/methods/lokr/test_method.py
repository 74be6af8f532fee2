"""A LoKr in memory: its start, its strength, and its files in PEFT and Diffusers."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load, save_file

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models.families.sd.spec import SPEC
from engine.models.family import PRECISIONS
from engine.task.task import Lora
from engine.training.methods.lokr.layer import product
from engine.training.methods.lokr.method import attach
from engine.training.methods.lora.formats.start_file import LORA_FILE, METADATA_KEY
from engine.training.methods.lora.spec import WEBUI_FILE
from engine.training.methods.registry import METHODS, load_parent
from tests.support import tiny
from tests.support.abouts import about_of, base_of, task_of
from tests.support.fakes import CPU

LAYERS = ("to_q", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "downsamplers.0.conv")
OPTIONS = {
    "whole": {"rank": 100},
    "low rank": {"rank": 2, "alpha": 0.5},
    "rank-stabilised": {"rank": 2, "alpha": 3.0, "use_rslora": True, "factor": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


class Family:
    """As much of a family as the method asks for."""

    def __init__(self, folder, dtype=torch.float32):
        self.spec = SPEC
        self.denoiser = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
        self.parts = {"unet": self.denoiser}

    def webui_name(self, component, module):
        return f"lora_unet_{module.replace('.', '_')}"


def attached(folder, warm_start=None, seed=0, dtype=torch.float32, **options):
    family = Family(folder, dtype)
    lora = Lora(**{"target_modules": LAYERS, **options})
    task = task_of(training_type="lokr", lora=lora, seed=seed)
    return family.denoiser, attach(family, task, CPU, start=None, warm_start=warm_start), task


def trained(training):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return training


def published(training, task, folder):
    config = lambda component: json.loads((folder / component / "config.json").read_text())  # noqa: E731
    return training.export(about_of(base_of("sha256:0", spec=SPEC, config=config), task))


@torch.no_grad()
def prediction(denoiser, dtype=torch.float32):
    states = torch.linspace(-1, 1, 77 * tiny.HIDDEN).reshape(1, 77, tiny.HIDDEN).to(dtype)
    return denoiser(torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8).to(dtype), 3, states).sample.float()


def test_a_new_one_has_no_effect_and_comes_from_the_seed(folder):
    denoiser, training, _ = attached(folder, rank=4)
    with training.baseline():
        plain = prediction(denoiser)
    assert torch.equal(prediction(denoiser), plain)
    _, again, _ = attached(folder, rank=4)
    _, other, _ = attached(folder, rank=4, seed=1)
    same = {name: torch.equal(tensor, again.state()[name]) for name, tensor in training.state().items()}
    drawn = {name: torch.equal(tensor, other.state()[name]) for name, tensor in training.state().items()}
    assert all(same.values())
    assert {name.rpartition(".")[2]: is_same for name, is_same in drawn.items()} == {
        "lokr_w1": False,
        "lokr_w2": True,
        "lokr_w2_a": False,
        "lokr_w2_b": True,
    }


def test_a_random_start_has_an_effect(folder):
    denoiser, training, _ = attached(folder, init_lora_weights=False)
    with training.baseline():
        plain = prediction(denoiser)
    assert not torch.allclose(prediction(denoiser), plain, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_diffusers_reads_it(folder, tmp_path, precision, options):
    """All kinds of layers, the strength in the weights. In bfloat16 Diffusers rounds the products of the factors."""
    dtype = PRECISIONS[precision]
    denoiser, training, task = attached(folder, dtype=dtype, **options)
    files = published(trained(training), task, folder)
    (tmp_path / LORA_FILE).write_bytes(files[LORA_FILE])
    other = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    plain = prediction(other, dtype)
    other.load_lora_adapter(tmp_path, weight_name=LORA_FILE, prefix="unet")
    found, own = prediction(other, dtype), prediction(denoiser, dtype)
    effect = (own - plain).abs().max()
    assert effect > 0.05 and (found - own).abs().max() < effect * {"no": 1e-4, "bf16": 0.2}[precision]


def test_without_metadata_diffusers_infers_it_for_linear_layers(folder, tmp_path):
    denoiser, training, task = attached(folder, rank=2, alpha=3.0, target_modules=("to_q", "to_k", "ff.net.0.proj"))
    tensors = load(published(trained(training), task, folder)[LORA_FILE])
    save_file(tensors, tmp_path / LORA_FILE)
    other = UNet2DConditionModel.from_pretrained(folder / "unet")
    other.load_lora_adapter(tmp_path, weight_name=LORA_FILE, prefix="unet")
    torch.testing.assert_close(prediction(other), prediction(denoiser), rtol=1e-4, atol=1e-5)


def test_the_file_of_the_web_interfaces_has_the_same_factors(folder):
    _, training, task = attached(folder, rank=2, alpha=0.5)
    files = published(trained(training), task, folder)
    plain, webui = load(files[LORA_FILE]), load(files[WEBUI_FILE])
    alphas = {name: webui.pop(name) for name in [*webui] if name.endswith(".alpha")}
    assert {float(alpha) for alpha in alphas.values()} == {2.0}
    named = {f"lora_unet_{name[5:].rpartition('.')[0].replace('.', '_')}.{name.rpartition('.')[2]}" for name in plain}
    assert named == webui.keys() and {f"{name.rpartition('.')[0]}.alpha" for name in webui} == alphas.keys()
    assert sum(float(tensor.sum()) for tensor in plain.values()) == pytest.approx(
        sum(float(tensor.sum()) for tensor in webui.values())
    )
    header = json.loads(files[WEBUI_FILE][8 : 8 + int.from_bytes(files[WEBUI_FILE][:8], "little")])["__metadata__"]
    assert json.loads(header["ss_network_args"]) == {"algo": "lokr", "factor": -1}
    assert (header["ss_network_module"], header["ss_network_dim"]) == ("lycoris.kohya", "2")
    assert header["modelspec.title"].startswith("LoKr")


def test_dropout_is_on_in_a_micro_batch_alone(folder):
    denoiser, training, _ = attached(folder, rank=2, dropout=0.5)
    trained(training)
    plain = prediction(denoiser)
    with training.micro_batch(7):
        dropped = prediction(denoiser)
        assert torch.equal(dropped, prediction(denoiser)) and not torch.equal(dropped, plain)
    with training.micro_batch(8):
        assert not torch.equal(prediction(denoiser), dropped)
    assert torch.equal(prediction(denoiser), plain)


@pytest.mark.parametrize("name", ["low rank", pytest.param("rank-stabilised", marks=pytest.mark.slow)])
def test_a_start_from_its_own_file(folder, tmp_path, name):
    options = OPTIONS[name]
    denoiser, training, task = attached(folder, **options)
    (tmp_path / LORA_FILE).write_bytes(published(trained(training), task, folder)[LORA_FILE])
    start = load_parent(tmp_path, METHODS["lokr"])
    other, _, _ = attached(folder, start, **options)
    torch.testing.assert_close(prediction(other), prediction(denoiser))
    with pytest.raises(CheckpointError, match=r"the same model, lora\.rank, lora\.factor"):
        attached(folder, start, **{**options, "factor": 2})


def test_a_strength_beyond_float32_is_not_published(folder):
    _, training, _ = attached(folder, rank=2, alpha=1e30)
    with torch.no_grad():
        next(iter(training.parameters.values())).fill_(1e10)
    with pytest.raises(NonFiniteError, match=r"not finite after step 3; try a lower learning_rate or lora\.alpha"):
        training.require_finite(3)


def test_the_change_of_a_weight_is_the_product_at_its_strength(folder):
    _, training, task = attached(folder, rank=2, alpha=0.5, target_modules=("to_q",))
    tensors = load(published(trained(training), task, folder)[LORA_FILE])
    module = next(name for name in tensors if name.endswith(".lokr_w1")).removesuffix(".lokr_w1")
    ends = [name.removeprefix(module) for name in tensors if name.startswith(f"{module}.")]
    found = product({end: tensors[f"{module}{end}"] for end in ends})
    own = product({end: training.state()[f"{module}{end}"] for end in ends})
    torch.testing.assert_close(found, own * training.strength(module))


def test_the_metadata_are_pefts_configuration(folder):
    _, training, task = attached(folder, rank=3, factor=2, target_modules=("conv_in",))
    data = published(training, task, folder)[LORA_FILE]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert json.loads(header[METADATA_KEY]) == {
        "unet.r": 3,
        "unet.alpha": 3,
        "unet.decompose_factor": 2,
        "unet.decompose_both": False,
        "unet.target_modules": ["conv_in"],
    }
