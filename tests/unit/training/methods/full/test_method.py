"""Whole-model training in memory: masters, precision, the base model's weights, weights to start from."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models import registry as families
from engine.models.family import PRECISIONS, LoadArgs
from engine.results import safetensors_file
from engine.task.task import Dataset, Model, Task, TrainArgs
from engine.training.methods.full.method import attach
from engine.training.methods.registry import METHODS, load_parent
from tests.support import tiny
from tests.support.fakes import CPU

CLASSES = {
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: getattr(tiny, f"build_{name}")(tmp_path_factory.mktemp(name)) for name in ("sd", "sdxl")}


def task_of(precision="no", *, text=False):
    args = TrainArgs(train_text_encoder=text)
    return Task(
        model=Model(name="m"),
        dataset=Dataset(name="d"),
        training_type="full",
        train_args=args,
        mixed_precision=precision,
    )


def load(folder, task):
    row = families.detect(json.loads((folder / "model_index.json").read_text()))
    args = LoadArgs(
        folder=folder,
        variants=dict.fromkeys(row.weighted),
        dtype=PRECISIONS[task.mixed_precision],
        float32=frozenset(METHODS["full"].trained_weights(row, task)),
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return families.load(row, args)


def attached(folder, task, warm_start=None):
    family = load(folder, task)
    return family, attach(family, task, CPU, start=None, warm_start=warm_start)


def write(trainable, folder):
    for name, content in trainable.export(None).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else b"".join(content()))
    return folder


def move(trainable, scale=1e-3):
    """As a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    trainable.refresh()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_modules_compute_in_the_tasks_precision_and_masters_are_float32(folders, precision):
    family, trainable = attached(folders["sd"], task_of(precision))
    own = dict(UNet2DConditionModel.from_pretrained(folders["sd"] / "unet").named_parameters())
    assert {name.removeprefix("unet.") for name in trainable.parameters} == own.keys()
    assert all(torch.equal(p, own[name.removeprefix("unet.")]) for name, p in trainable.parameters.items())
    move(trainable)
    for name, layer in family.denoiser.named_parameters():
        assert layer.requires_grad and torch.equal(layer, trainable.parameters[f"unet.{name}"].to(layer.dtype))
    assert {p.dtype for p in family.denoiser.parameters()} == {PRECISIONS[precision]}
    frozen = [*family.text_encoders["text_encoder"].parameters(), *family.vae.parameters()]
    assert not any(p.requires_grad for p in frozen)


def test_without_16_bits_there_is_no_copy(folders):
    family, trainable = attached(folders["sd"], task_of())
    assert all(trainable.parameters[f"unet.{name}"] is p for name, p in family.denoiser.named_parameters())


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("limit", [None, 30_000])
def test_the_published_folders_load_with_the_same_bits(folders, tmp_path, monkeypatch, kind, precision, limit):
    if limit:
        monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", limit)
    family, trainable = attached(folders[kind], task_of(precision, text=True))
    move(trainable)
    write(trainable, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"unet", *family.text_encoders}
    for component in ("unet", *family.text_encoders):
        shards = list((tmp_path / component).glob("*-of-*.safetensors"))
        assert bool(shards) == (limit is not None)
        loaded, info = CLASSES[component].from_pretrained(
            tmp_path / component, dtype=PRECISIONS[precision], output_loading_info=True
        )
        assert not any(info.values())
        module = family.parts[component]
        assert all(torch.equal(p, module.get_parameter(name)) for name, p in loaded.named_parameters())
        text = (tmp_path / component / "config.json").read_text()
        assert str(folders[kind]) not in text and "_name_or_path" not in text


def test_text_encoders_have_the_names_of_the_hub(folders, tmp_path):
    _, trainable = attached(folders["sdxl"], task_of(text=True))
    for component in ("text_encoder", "text_encoder_2"):
        names = [name for name in trainable.parameters if name.startswith(f"{component}.")]
        assert all(name.split(".")[1] in ("text_model", "text_projection") for name in names)
    denoisers, texts = trainable.groups
    assert all(name.startswith("unet.") for name in denoisers)
    assert texts.keys() | denoisers.keys() == trainable.parameters.keys()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_training_starts_from_published_weights(folders, tmp_path, precision):
    _, first = attached(folders["sd"], task_of(text=True))
    move(first)
    found = load_parent(write(first, tmp_path), METHODS["full"])
    _, second = attached(folders["sd"], task_of(precision, text=True), found)
    assert all(torch.equal(p, first.parameters[name]) for name, p in second.parameters.items())
    # Without text encoders these stay those of the base model.
    family, third = attached(folders["sd"], task_of(precision), found)
    assert all(torch.equal(p, first.parameters[name]) for name, p in third.parameters.items())
    base = CLIPTextModel.from_pretrained(folders["sd"] / "text_encoder", dtype=PRECISIONS[precision])
    texts = family.text_encoders["text_encoder"]
    assert all(torch.equal(p, texts.get_parameter(name)) for name, p in base.named_parameters())


def test_start_values_in_16_bits_are_widened(folders, tmp_path):
    _, first = attached(folders["sd"], task_of("bf16"))
    found = load_parent(write(first, tmp_path), METHODS["full"])
    _, second = attached(folders["sd"], task_of(), found)
    assert all(torch.equal(p, first.parameters[n].bfloat16().float()) for n, p in second.parameters.items())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"attention_head_dim": 2}, "attention_head_dim is 2 in its unet/config.json"),
        ({"block_out_channels": [32, 32]}, "another model: block_out_channels"),
        ({"layers_per_block": 10**9}, "another model: layers_per_block is 1000000000"),
    ],
)
def test_weights_of_another_model_are_refused(folders, tmp_path, change, words):
    task = task_of()
    _, first = attached(folders["sd"], task)
    path = write(first, tmp_path) / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        attached(folders["sd"], task, load_parent(tmp_path, METHODS["full"]))


def test_weights_that_change_after_they_were_hashed_are_refused(folders, tmp_path):
    _, first = attached(folders["sd"], task_of())
    found = load_parent(write(first, tmp_path), METHODS["full"])
    move(first)
    write(first, tmp_path)
    with pytest.raises(CheckpointError, match=r"safetensors changed while the job was running"):
        attached(folders["sd"], task_of(), found)


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000])
def test_a_configuration_that_is_none_is_refused(folders, tmp_path, data):
    _, first = attached(folders["sd"], task_of())
    (write(first, tmp_path) / "unet" / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a configuration"):
        attached(folders["sd"], task_of(), load_parent(tmp_path, METHODS["full"]))


def test_start_values_that_are_not_finite_are_refused(folders, tmp_path):
    _, first = attached(folders["sd"], task_of())
    with torch.no_grad():
        first.parameters["unet.conv_in.bias"][0] = torch.nan
    found = load_parent(write(first, tmp_path), METHODS["full"])
    with pytest.raises(CheckpointError, match=r"not finite: unet\.conv_in\.bias"):
        attached(folders["sd"], task_of(), found)


def test_a_weight_beyond_float16_is_not_published(folders):
    _, trainable = attached(folders["sd"], task_of("fp16"))
    with torch.no_grad():
        trainable.parameters["unet.conv_in.bias"][0] = 1e5
    trainable.refresh()
    with pytest.raises(NonFiniteError, match=r"unet\.conv_in\.bias is not finite after step 3"):
        trainable.require_finite(3)


def test_a_checkpoint_with_other_parameters_is_refused(folders):
    _, with_text = attached(folders["sd"], task_of(text=True))
    _, without = attached(folders["sd"], task_of())
    with pytest.raises(CheckpointError, match="is not trained by this task"):
        without.restore(with_text.state())
    with pytest.raises(CheckpointError, match="is missing from the checkpoint"):
        with_text.restore(without.state())


def test_an_error_in_the_baseline_leaves_the_weights(folders, monkeypatch):
    family, trainable = attached(folders["sd"], task_of())
    move(trainable)
    before = {name: p.detach().clone() for name, p in trainable.parameters.items()}
    with pytest.raises(RuntimeError), trainable.baseline():
        raise RuntimeError
    assert all(torch.equal(p, before[name]) for name, p in trainable.parameters.items())
    assert all(torch.equal(p, before[f"unet.{name}"]) for name, p in family.denoiser.named_parameters())


def test_the_loaded_dtype_does_not_depend_on_what_else_is_trained(folders):
    task = task_of("bf16")
    family = load(folders["sd"], task)
    assert family.denoiser.dtype == torch.float32 and family.text_encoders["text_encoder"].dtype == torch.bfloat16
    family = load(folders["sd"], replace(task, train_args=TrainArgs(train_text_encoder=True)))
    assert family.text_encoders["text_encoder"].dtype == torch.float32
