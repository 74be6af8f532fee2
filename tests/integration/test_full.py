"""Whole-model training and averaged weights: the same bytes however cut, killed or shared, and folders that load."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from tests.support.harness import ENTRYPOINT, assert_same, changed, clean_environment, folder_bytes, read_json
from tests.support.pipelines import in_own_memory

STEPS = 6
EVERY_CHANGE = {"SAVE_SECONDS": "0"}
SHORT = {
    **{f"train_args.{key}": STEPS for key in ("num_train_steps", "max_train_steps")},
    "train_args.batch_size": 1,
    "train_args.learning_rate": 1e-3,
    "validation.num_inference_steps": 2,
    "training_type": "full",
}
AVERAGE = {"train_args.ema_decay": 0.9}
TEXTS = {"train_args.train_text_encoder": True, "train_args.text_encoder_learning_rate": 1e-4}
VARIANTS = {
    "sd": {
        **{"train_args.snr_gamma": 5.0, "train_args.noise_offset": 0.1, "train_args.zero_terminal_snr": False},
        **{"validation.every_n_steps": 3, "checkpoint_every_n_steps": 3, "checkpoint_limit": 1},
    },
    "sd, bf16, average, text encoder": {
        **{**AVERAGE, **TEXTS, "mixed_precision": "bf16", "validation.every_n_steps": 4},
        **{"validation.dataset": {"fraction": 0.25}, "transforms.buckets": True, "train_args.resolution": 128},
    },
    "xl, average": AVERAGE,
    "xl, bf16, text encoders": {**TEXTS, "mixed_precision": "bf16", "train_args.gradient_checkpointing": True},
    "sd, masks": {**AVERAGE, "train_args.loss_type": "huber", "dataset.mask_column": "mask"},
    "LoRA, average": {**AVERAGE, "training_type": "lora", "validation.dataset": {"fraction": 0.25}},
    "LoRA, average, LoftQ, bf16": {
        **{**AVERAGE, **TEXTS, "training_type": "lora", "mixed_precision": "bf16"},
        **{"lora.init_lora_weights": "loftq", "lora.dropout": 0.1},
    },
}
QUICK = ("sd", "sd, bf16, average, text encoder", "LoRA, average")
STRIKES = ("kill", "ENOSPC", "power", "SIGTERM")
QUICK_STRIKES = {("sd", "power"), ("LoRA, average", "ENOSPC")}
STRUCK = [
    pytest.param(name, how, marks=() if (name, how) in QUICK_STRIKES else pytest.mark.slow)
    for name in VARIANTS
    for how in STRIKES
]
SOME = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope="module")
def run(server):
    def run(task, out, *flags, **orders):
        finished = server.run(task, out, *flags, env=EVERY_CHANGE, save_always=True, **orders)
        assert finished.code == 0, finished.stderr
        return finished

    return run


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Images of which a part counts, in each another one."""
    folder = tmp_path_factory.mktemp("masked")
    rows = []
    for k in range(4):
        Image.effect_noise((64, 64), 20 + 40 * k).convert("RGB").save(folder / f"{k}.png")
        Image.linear_gradient("L").resize((64, 64)).rotate(90 * k).save(folder / f"mask-{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"image {k}", "mask": f"mask-{k}.png"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def task_of(task, xl_model, masked):
    def variant(name):
        own = changed(task, {**SHORT, **VARIANTS[name]})
        own = changed(own, {"dataset.name": str(masked)} if "masks" in name else {})
        return changed(own, {"model.name": str(xl_model)}) if name.startswith("xl") else own

    return variant


@pytest.fixture(scope="module")
def whole_of(run, task_of, tmp_path_factory):
    """Each variant in one go, made once."""
    made = {}

    def whole(name):
        if name not in made:
            out = tmp_path_factory.mktemp("whole") / "out"
            made[name] = run(task_of(name), out, watched=str(out))
        return made[name]

    return whole


def result_of(finished):
    """What must not depend on how a training was cut: state, weights, losses, and the last step's images."""
    files = {name: data for name, data in finished.folders().items() if "/step-" not in name}
    return {name: data for name, data in files.items() if not name.endswith(("manifest.json", "state.json", "FINISH"))}


@pytest.mark.parametrize("name", SOME)
def test_a_chain_is_the_training_in_one_go(run, task_of, whole_of, tmp_path, name):
    parent = ()
    for part, steps in enumerate((1, 3, STEPS)):
        own = changed(task_of(name), {"train_args.num_train_steps": steps})
        last = run(own, tmp_path / f"{part}", *parent)
        parent = ("--checkpoint", last.out / "checkpoint")
    assert last.result["finished"] and (last.out / "checkpoint" / "FINISH").exists()
    found, expected = result_of(last), result_of(whole_of(name))
    if "validation.dataset" in VARIANTS[name]:  # measured at each task's ends, too
        assert found.pop("checkpoint/heldout.jsonl").count(b"\n") > expected.pop("checkpoint/heldout.jsonl").count(
            b"\n"
        )
    assert_same(found, expected)


@pytest.mark.parametrize("name, how", STRUCK)
def test_struck_anywhere(run, server, task_of, whole_of, tmp_path, name, how):
    """At three changes of the output folder, each way of striking at others; more of them in the slow run."""
    whole, codes = whole_of(name), {"kill": (-9,), "power": (-9,), "SIGTERM": (143, 0), "ENOSPC": (7, 0)}[how]
    first = 3 + STRIKES.index(how)
    for at in range(first, len(whole.changes), max(1, len(whole.changes) // 2)):
        out = tmp_path / f"{at}"
        struck = server.run(task_of(name), out, env=EVERY_CHANGE, save_always=True, watched=str(out), at=at, strike=how)
        assert struck.code in codes, (whole.changes[at - 1], struck.stderr)
        again = run(task_of(name), out)
        assert_same(again.folders(), whole.folders())
        assert not (out / ".job").exists()


def loaded(folder, dtype):
    """The pipeline of a base model with the published components in place of its own."""
    parts = {}
    for name, cls in {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}.items():
        if (folder / name).is_dir():
            parts[name], info = cls.from_pretrained(folder / name, dtype=dtype, output_loading_info=True)
            assert not any(info.values())
    return parts


@pytest.mark.parametrize("name", ["sd", "sd, bf16, average, text encoder"])
@pytest.mark.usefixtures("one_thread")
def test_pictures_are_drawn_with_just_the_published_weights(whole_of, task_of, name):
    finished, task = whole_of(name), task_of(name)
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    side = task["train_args"]["resolution"]
    parts = loaded(finished.out / "checkpoint", dtype)
    pipe = DiffusionPipeline.from_pretrained(task["model"]["name"], dtype=dtype, **parts)
    in_own_memory(pipe)
    for row in read_json(finished.out / "validation" / "prompts.json"):
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        drawn = pipe(row["prompt"], height=side, width=side, num_inference_steps=2, generator=generator).images[0]
        with Image.open(finished.out / "validation" / row["file"]) as kept:
            assert np.array_equal(np.asarray(drawn), np.asarray(kept))


def test_what_is_published(whole_of):
    plain, averaged = whole_of("sd"), whole_of("sd, bf16, average, text encoder")
    names = folder_bytes(plain.out / "checkpoint").keys()
    weights = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert weights <= names and {f"steps/000003/{name}" for name in weights} <= names
    assert not any("lora" in name or name.startswith("text_encoder") for name in names)
    names = folder_bytes(averaged.out / "checkpoint").keys()
    assert {*weights, "text_encoder/config.json", "text_encoder/model.safetensors"} <= names
    rows = [json.loads(line) for line in (averaged.out / "checkpoint" / "heldout.jsonl").read_text().splitlines()]
    # Before the first step the average is the weights themselves.
    assert rows[0]["raw_loss"] == rows[0]["loss"] and rows[-1]["raw_loss"] != rows[-1]["loss"]


def test_a_step_in_between_is_the_weights_of_that_step(run, task_of, whole_of, tmp_path):
    half = run(changed(task_of("sd"), {"train_args.num_train_steps": 3}), tmp_path / "half")
    kept = folder_bytes(whole_of("sd").out / "checkpoint" / "steps" / "000003")
    published = folder_bytes(half.out / "checkpoint")
    assert kept == {name: published[name] for name in kept} and len(kept) == 2


def test_another_method_or_average_is_refused(server, task_of, whole_of, tmp_path):
    checkpoint = whole_of("sd").out / "checkpoint"
    for changes, words in (
        ({"training_type": "lora"}, "training_type is 'full' in the checkpoint, at its default in this task"),
        (AVERAGE, "ema_decay is set"),
        (TEXTS, "train_text_encoder"),
    ):
        refused = server.run(changed(task_of("sd"), changes), tmp_path / "out", "--checkpoint", checkpoint)
        assert refused.code == 5 and words in refused.error


@pytest.mark.parametrize("victim", ["state.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_file_is_named(run, server, task_of, tmp_path, victim):
    half = run(changed(task_of("sd"), {"train_args.num_train_steps": 3}), tmp_path / "half")
    path = half.out / "checkpoint" / victim
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    refused = server.run(task_of("sd"), tmp_path / "out", "--checkpoint", half.out / "checkpoint")
    assert refused.code == 5 and victim in refused.error


def test_a_training_starts_from_published_weights_alone(run, task_of, whole_of, tmp_path):
    """As from a checkpoint of Diffusers' script, which has other files beside `unet/`."""
    start = tmp_path / "checkpoint-500"
    (start / "unet").mkdir(parents=True)
    for path in (whole_of("sd").out / "checkpoint" / "unet").iterdir():
        (start / "unet" / path.name).write_bytes(path.read_bytes())
    (start / "optimizer.bin").write_bytes(b"")
    warm = run(task_of("sd"), tmp_path / "warm", "--checkpoint", start)
    assert "without training state" in warm.stderr
    assert warm.result["resumed_from_step"] == 0 and warm.manifest["parent"]
    moved = (warm.out / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert moved != (start / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_starts_from_a_lora_that_was_merged(run, task_of, tmp_path):
    """With next to no learning rate, what it ends with are the merged weights."""
    lora = run(changed(task_of("sd"), {"training_type": "lora", "checkpoint_every_n_steps": None}), tmp_path / "lora")
    command = [sys.executable, ENTRYPOINT, "export", lora.out, "--format", "diffusers", "--output", tmp_path / "merged"]
    base = task_of("sd")["model"]["name"]
    subprocess.run([*map(str, command), "--base", base], check=True, env=clean_environment(tmp_path))
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet")
    start = ("--checkpoint", tmp_path / "merged")
    still = {"train_args.learning_rate": 1e-30, "train_args.adam_args": {"weight_decay": 0.0}}
    kept = run(changed(task_of("sd"), still), tmp_path / "kept", *start)
    found = UNet2DConditionModel.from_pretrained(kept.out / "checkpoint" / "unet")
    # Zeros have moved by the learning rate, other values not at all.
    near = {"rtol": 0.0, "atol": 1e-25}
    assert all(torch.allclose(p, found.get_parameter(name), **near) for name, p in merged.named_parameters())
    own = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    assert not all(torch.equal(p, own.get_parameter(name)) for name, p in merged.named_parameters())
    assert run(task_of("sd"), tmp_path / "moved", *start).result["finished"]
