"""A base model in one file, as model sites offer it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load

from engine.models.registry import FAMILIES
from tests.support import single_files
from tests.support.harness import assert_same, changed, run_job, succeed, together
from tests.support.servers import serving

LAYOUTS = [layout for layout, pipeline in single_files.PIPELINES.items() if pipeline in FAMILIES]


@pytest.fixture(scope="module", params=[pytest.param(x, marks=[pytest.mark.slow] * (x != "xl")) for x in LAYOUTS])
def models(request, tmp_path_factory):
    """The same model as a folder in Diffusers' layout and as one file."""
    root = tmp_path_factory.mktemp(request.param)
    folder = single_files.write_folder(root / "folder", request.param)
    return folder, single_files.write(root / "model.safetensors", request.param)


def test_a_file_trains_to_the_bytes_of_its_folder(short_task, models, tmp_path):
    folder, file = models
    one, other = together(
        lambda: succeed(changed(short_task, {"model.name": str(folder)}), tmp_path / "folder"),
        lambda: succeed(changed(short_task, {"model.name": str(file)}), tmp_path / "file"),
    )
    found, expected = other.weights(), one.weights()
    # The file for web interfaces names its base model, by the content of the folder or of the file.
    own, theirs = (load(weights.pop("lora_webui.safetensors")) for weights in (found, expected))
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    assert_same(found, expected)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert other.manifest["base_model"] == {"identity": f"sha256:{digest}", "revision": None}
    assert "base model: a single file of Stable Diffusion" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_whole_model_from_a_file_has_the_bytes_of_its_folder(short_task, models, tmp_path, precision):
    """The weights themselves are trained, and read again for the images without the training."""
    whole = {"training_type": "full", "mixed_precision": precision, "train_args.ema_decay": 0.9}
    task = changed(short_task, {**whole, "train_args.train_text_encoder": True})
    one, other = (
        succeed(changed(task, {"model.name": str(path)}), tmp_path / name)
        for name, path in zip(("folder", "file"), models, strict=True)
    )
    found, expected = (
        {name: data for name, data in job.folders().items() if name.endswith((".safetensors", ".png"))}
        for job in (other, one)
    )
    assert any("/unet/" in name for name in found) and any("/text_encoder" in name for name in found)
    assert_same(found, expected)


@pytest.mark.slow
def test_by_url_a_chain_and_a_plan(task, tmp_path):
    """Downloaded once; the second task finds the same base model under its content's name."""
    file = single_files.write(tmp_path / "model.safetensors", "sd1", dtype=torch.float16)
    with serving(file.read_bytes()) as (url, asked):
        own = changed(
            task, {"model.name": url, "train_args.num_train_steps": 1, "train_args.max_train_steps": 2, "seed": 3}
        )
        env = {"ALLOW_PRIVATE_URLS": "1", "CACHE_DIR": str(tmp_path / "cache")}
        plan = succeed(own, tmp_path / "plan", "--plan", env=env)
        assert not plan.out.exists() and "none is cut at 75" in plan.stdout
        first = succeed(own, tmp_path / "first", env=env)
        parent = tmp_path / "first" / "checkpoint"
        second = succeed(own, tmp_path / "second", "--checkpoint", parent, env=env)
    assert len(asked) == 1
    assert second.result["finished"] and second.manifest["parent"] == first.manifest["digest"]
    refused = run_job(changed(own, {"model.name": url}), tmp_path / "refused", env={"CACHE_DIR": str(tmp_path / "c")})
    assert refused.code == 4 and "ALLOW_PRIVATE_URLS" in refused.error


def test_a_lora_given_as_a_base(short_task, tmp_path):
    lora = single_files.write_header(
        tmp_path / "style.safetensors", {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}
    )
    finished = run_job(changed(short_task, {"model.name": str(lora)}), tmp_path / "out", "--plan")
    assert finished.code == 4
    assert "style.safetensors is a LoRA, not a base model; name the model that it was trained on" in finished.error
