"""A part of the base model that comes from elsewhere: trained with, continued, exported, told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file

from tests.support import tiny
from tests.support.fake_hub import COMMIT, serving_hub
from tests.support.harness import assert_same, changed, run_job, succeed

ONE_IMAGE = {"validation": {"prompt": "x", "num_images": 1, "num_inference_steps": 1}}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("other"), seed=1)


def with_vae(task, name, **changes):
    return changed(task, {**ONE_IMAGE, "model.components": {"vae": {"name": str(name)}}, **changes})


def test_a_vae_from_elsewhere_has_the_bytes_of_a_folder_with_it(short_task, model, other, tmp_path):
    """But for names of the base model; a task without it, and one that continues without it, are others."""
    mixed = shutil.copytree(model, tmp_path / "mixed")
    shutil.rmtree(mixed / "vae")
    shutil.copytree(other / "vae", mixed / "vae")
    found = succeed(with_vae(short_task, other), tmp_path / "found")
    expected = succeed(changed(short_task, {**ONE_IMAGE, "model.name": str(mixed)}), tmp_path / "expected")
    own, theirs = (job.folders() for job in (found, expected))
    drawn = [name for name in theirs if name.endswith((".png", "pytorch_lora_weights.safetensors"))]
    assert len(drawn) == 3
    assert_same({name: own[name] for name in drawn}, {name: theirs[name] for name in drawn})

    identity = found.manifest["base_model"]["components"]["vae"]["identity"]
    assert identity.startswith("sha256:")
    card = own["checkpoint/README.md"].decode()
    assert "vae = AutoencoderKL.from_pretrained('path/to/the/vae', dtype=torch.float32)" in card
    assert "from_pretrained(base, vae=vae, dtype=torch.float32)" in card and str(other) not in card

    longer = {"train_args.max_train_steps": 4}
    parent = tmp_path / "found" / "checkpoint"
    plan = succeed(with_vae(short_task, other, **longer), tmp_path / "plan", "--plan")
    assert f"vae            {other} ({identity[:19]})" in plan.stdout
    refused = run_job(changed(short_task, {**ONE_IMAGE, **longer}), tmp_path / "refused", "--checkpoint", parent)
    assert refused.code == 5 and "components is" in refused.error and "at its default in this task" in refused.error


@pytest.mark.slow
def test_it_is_exported_and_verified(short_task, model, other, tmp_path):
    task = with_vae(short_task, other / "vae")
    (tmp_path / "task.json").write_text(json.dumps(task))
    succeed(task, tmp_path / "out")
    verified = succeed(None, None, "verify", tmp_path / "out", "--task", tmp_path / "task.json", "--device", "cpu")
    assert verified.stdout.startswith("identical")
    flags = ("export", tmp_path / "out", "--format", "diffusers", "--output", tmp_path / "whole", "--base", model)
    refused = run_job(None, None, *flags)
    assert refused.code == 4 and "a local vae, which has to be named: add --component vae=PATH" in refused.error
    refused = run_job(None, None, *flags, "--component", f"vae={model}")
    assert refused.code == 4 and "but the checkpoint was trained with sha256:" in refused.error
    refused = run_job(None, None, *flags, "--component", f"unet={model}")
    assert refused.code == 2 and "--component unet: expected NAME=WHERE" in refused.error
    succeed(None, None, *flags, "--component", f"vae={other}")
    vae = DiffusionPipeline.from_pretrained(tmp_path / "whole").vae
    expected = AutoencoderKL.from_pretrained(other / "vae").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.slow
def test_from_the_hub_a_chain_stays_at_its_commit(short_task, model, other, tmp_path):
    with serving_hub({"me/model": other}) as (address, downloaded):
        env = {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hub"),
            "CACHE_DIR": str(tmp_path / "cache"),
        }
        task = with_vae(short_task, "me/model", **{"train_args.num_train_steps": 1})
        succeed(task, tmp_path / "none", "prefetch", env=env)
        assert not any("/unet/" in name for name in downloaded) and any("/vae/" in name for name in downloaded)
        first = succeed(task, tmp_path / "first", env=env)
    assert first.manifest["base_model"]["components"]["vae"] == {
        "identity": f"me/model@{COMMIT}/vae",
        "revision": COMMIT,
        "name": "me/model",
        "subfolder": None,
        "variant": None,
        "branch": "main",
    }
    offline = env | {"HF_HUB_OFFLINE": "1"}
    second = succeed(task, tmp_path / "second", "--checkpoint", tmp_path / "first" / "checkpoint", env=offline)
    assert second.result["finished"]
    exported = tmp_path / "whole"
    flags = ("--format", "diffusers", "--output", exported, "--base", model)
    succeed(None, None, "export", tmp_path / "second", *flags, env=offline)
    stored = load_file(exported / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(
        stored["decoder.conv_in.weight"], AutoencoderKL.from_pretrained(other / "vae").decoder.conv_in.weight
    )
