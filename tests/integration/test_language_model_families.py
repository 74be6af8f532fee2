"""Families whose captions a language model encodes: the same bytes however cut or killed, files that load."""

from __future__ import annotations

import logging
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.support.forks import fork_server
from tests.support.harness import assert_same, changed, read_json, succeed
from tests.support.tiny import build_dataset
from tests.support.tiny_flux2_klein import build_flux2_klein
from tests.support.tiny_qwen_image import build_qwen_image
from tests.support.tiny_z_image import build_z_image

BUILDERS = {"qwen_image": build_qwen_image, "z_image": build_z_image, "flux2_klein": build_flux2_klein}
STEPS = 6
EVERY_CHANGE = {"SAVE_SECONDS": "0"}
VARIANTS = {
    "fp32": {"train_args.gradient_checkpointing": True},
    "bf16": {
        **{"mixed_precision": "bf16", "transforms.buckets": True, "train_args.resolution": 128},
        **{"validation.dataset": {"fraction": 0.25}, "train_args.ema_decay": 0.9},
    },
    "full": {"training_type": "full", "train_args.max_grad_norm": 0.5},
}
OPTIONS = {
    "qwen_image": lambda row: {"true_cfg_scale": row["guidance_scale"], "negative_prompt": " "},
    "z_image": lambda row: {"guidance_scale": row["guidance_scale"]},
    "flux2_klein": lambda row: {"guidance_scale": row["guidance_scale"]},
}
"""What a plain pipeline is told of an entry in `prompts.json`."""
UNUSED = ("txt_mlp.net.0.proj", "txt_mlp.net.2", "attn.to_add_out")
"""Layers of Qwen-Image's last block whose result nothing uses."""
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("forks"), heavy=True) as started:
        yield started


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build(folder / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def task_of(models, tmp_path_factory):
    images = build_dataset(tmp_path_factory.mktemp("images") / "images", 5, captions="list")

    def task(name, variant="fp32"):
        value = {
            "model": {"name": str(models[name])},
            "dataset": {"name": str(images)},
            "validation": {"num_images": 1, "num_inference_steps": 2, "guidance_scale": 1.5},
            "train_args": {
                **{"learning_rate": 1e-2, "scale_lr": False, "batch_size": 2, "gradient_accumulation_steps": 2},
                **{"num_train_steps": STEPS, "max_train_steps": STEPS, "resolution": 64},
            },
            "lora": {"rank": 4, "alpha": 2},
            "seed": 3,
        }
        own = changed(value, VARIANTS[variant])
        return {key: part for key, part in own.items() if key != "lora" or variant != "full"}

    return task


@pytest.fixture(scope="module")
def run(server):
    def run(task, out, *flags, **orders):
        finished = server.run(task, out, *flags, env=EVERY_CHANGE, save_always=True, **orders)
        assert finished.code == 0, finished.stderr
        return finished

    return run


@pytest.fixture(scope="module")
def whole_of(run, task_of, tmp_path_factory):
    """Each training in one go, made once."""
    made = {}

    def whole(name, variant="fp32"):
        if (name, variant) not in made:
            out = tmp_path_factory.mktemp("whole") / "out"
            made[name, variant] = run(task_of(name, variant), out, watched=str(out))
        return made[name, variant]

    return whole


def plain_pipeline(folder, **parts):
    """Diffusers alone. Its weights are copied out of their files' memory maps, where the alignment can change bits."""
    pipe = DiffusionPipeline.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    for module in [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return pipe


def redrawn(pipe, name, row):
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    drawn = pipe(
        prompt=row["prompt"],
        height=64,
        width=64,
        num_inference_steps=row["num_inference_steps"],
        generator=generator,
        **OPTIONS[name](row),
    )
    return np.asarray(drawn.images[0])


@pytest.fixture
def complaints():
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", BUILDERS)
def test_its_lora_draws_the_same_pictures_in_diffusers(whole_of, models, complaints, name):
    """Every key is used, and no other is missed."""
    finished, pipe = whole_of(name), plain_pipeline(models[name])
    (row,) = read_json(finished.out / "validation" / "prompts.json")
    kept = np.asarray(Image.open(finished.out / "validation" / row["file"]))
    before = redrawn(pipe, name, row)
    pipe.load_lora_weights(str(finished.out / "checkpoint"))
    assert not [line for line in complaints if "classifier-free" not in line]
    assert np.array_equal(redrawn(pipe, name, row), kept) and not np.array_equal(before, kept)
    found = load_file(finished.out / "checkpoint" / "pytorch_lora_weights.safetensors")
    assert all(bool(tensor.any()) for key, tensor in found.items() if "lora_B" in key)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in BUILDERS])
def test_a_whole_model_draws_the_same_pictures_in_diffusers(whole_of, models, name):
    finished = whole_of(name, "full")
    (row,) = read_json(finished.out / "validation" / "prompts.json")
    folder = finished.out / "checkpoint" / "transformer"
    cls = type(DiffusionPipeline.from_pretrained(models[name]).transformer)
    transformer, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    pipe = plain_pipeline(models[name], transformer=transformer)
    kept = np.asarray(Image.open(finished.out / "validation" / row["file"]))
    assert np.array_equal(redrawn(pipe, name, row), kept)


@slow
def test_layers_whose_result_is_unused_keep_their_weights(whole_of, models):
    before, after = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (models["qwen_image"], whole_of("qwen_image", "full").out / "checkpoint")
    )
    kept = {key for key in before if torch.equal(before[key], after[key])}
    last = max(int(key.split(".")[1]) for key in before if key.startswith("transformer_blocks."))
    assert kept == {f"transformer_blocks.{last}.{name}.{part}" for name in UNUSED for part in ("weight", "bias")}


def result_of(finished):
    """What must not depend on how a training was cut."""
    left_out = ("manifest.json", "state.json", "FINISH", "heldout.jsonl")  # held-out losses are measured at each end
    return {name: data for name, data in finished.folders().items() if not name.endswith(left_out)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in BUILDERS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chain_is_the_training_in_one_go(run, task_of, whole_of, tmp_path, name, variant):
    parent = ()
    for part, steps in enumerate((1, 3, 2)):
        own = changed(task_of(name, variant), {"train_args.num_train_steps": steps})
        last = run(own, tmp_path / f"{part}", *parent)
        parent = ("--checkpoint", last.out / "checkpoint")
    assert last.result["finished"]
    assert_same(result_of(last), result_of(whole_of(name, variant)))


@slow
@pytest.mark.parametrize("how, codes", [("kill", (-9,)), ("SIGTERM", (143, 0))])
def test_struck_anywhere(run, server, task_of, whole_of, tmp_path, how, codes):
    whole, task = whole_of("z_image"), task_of("z_image")
    for at in range(3, len(whole.changes), max(1, len(whole.changes) // 4)):
        out = tmp_path / f"{at}"
        struck = server.run(task, out, env=EVERY_CHANGE, save_always=True, watched=str(out), at=at, strike=how)
        assert struck.code in codes, (whole.changes[at - 1], struck.stderr)
        assert_same(run(task, out).folders(), whole.folders())


@slow
@pytest.mark.parametrize("name", BUILDERS)
def test_two_processes_give_the_bytes_of_one(task_of, whole_of, tmp_path, name):
    task = changed(task_of(name), {"train_args.gradient_accumulation_steps": 1})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2"]
    together = succeed(task, tmp_path / "out", prefix=launcher)
    assert_same(together.weights(), whole_of(name).weights())


BROKEN = {
    "no text encoder": lambda folder: shutil.rmtree(folder / "text_encoder"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "a pickle": lambda folder: (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(
        folder / "transformer" / "diffusion_pytorch_model.bin"
    ),
    "another model's VAE": lambda folder: shutil.copytree(
        folder.parent / "other" / "vae", folder / "vae", dirs_exist_ok=True
    ),
}


@pytest.mark.parametrize(
    "name, how", [("qwen_image", how) for how in BROKEN] + [("flux2_klein", "another model's VAE")]
)
def test_broken_models_are_refused(server, models, task_of, tmp_path, name, how):
    shutil.copytree(models["z_image"], tmp_path / "other")
    BROKEN[how](shutil.copytree(models[name], tmp_path / "model"))
    refused = server.run(changed(task_of(name), {"model.name": str(tmp_path / "model")}), tmp_path / "out")
    assert refused.code == 4 and "the base model" in refused.stderr, refused.stderr


def test_sizes_that_are_not_whole_tokens_are_refused(server, task_of, tmp_path):
    refused = server.run(changed(task_of("z_image"), {"train_args.resolution": 72}), tmp_path / "out")
    assert refused.code == 2 and "expected a multiple of 16" in refused.stderr
