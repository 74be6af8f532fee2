"""The web interfaces' metadata: what they say, and that their bytes are the same each time."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from engine.models.families.sd import spec as sd_spec
from engine.models.families.sdxl import spec as sdxl_spec
from engine.training.methods.lora.webui_metadata import describe, serialise


def sd(width, prediction_type="epsilon"):
    return sd_spec.webui_metadata(
        lambda component: {"unet": {"cross_attention_dim": width}}[component], prediction_type
    )


SD1 = sd(768)


def lora(rank=4, alpha=4.0, module="lora_unet_mid_block_attentions_0_proj_in"):
    return {
        f"{module}.lora_down.weight": torch.arange(rank * 6, dtype=torch.float32).reshape(rank, 6),
        f"{module}.lora_up.weight": torch.ones(5, rank),
        f"{module}.alpha": torch.tensor(alpha),
    }


def described(tensors, base=SD1, **changes):
    arguments = {"identity": "org/model@" + "a" * 40, "resolution": 512, "global_step": 9}
    return describe(tensors, base, **arguments | changes)


def test_what_is_said():
    assert described(lora()) == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "LoRA, 9 steps",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_resolution": "(512, 512)",
        "ss_sd_model_name": "org/model",
        "ss_steps": "9",
    }


@pytest.mark.parametrize(
    "base, version, v2, architecture",
    [
        (SD1, "sd_v1", "False", "stable-diffusion-v1/lora"),
        (sd(768, "v_prediction"), "sd_v1_v", "False", "stable-diffusion-v1/lora"),
        (sd(1024), "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        (sd(1024, "v_prediction"), "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        (
            sdxl_spec.webui_metadata(dict, "epsilon"),
            "sdxl_base_v1-0",
            "False",
            "stable-diffusion-xl-v1-base/lora",
        ),
    ],
)
def test_what_loras_are_sorted_by(base, version, v2, architecture):
    """AUTOMATIC1111 takes `sdxl_…` for XL, else `ss_v2` "True" for SD 2.x, else SD 1.x."""
    found = described(lora(), base)
    assert (found["ss_base_model_version"], found["ss_v2"]) == (version, v2)
    assert found["modelspec.architecture"] == architecture


def test_a_velocity_prediction_and_a_base_without_a_name():
    found = described(lora(), sd(1024, "v_prediction"), identity="sha256:" + "0123456789abcdef" * 4)
    assert found["modelspec.prediction_type"] == "v" and found["ss_sd_model_name"] == "0123456789ab"


def test_ranks_that_differ():
    found = described(lora(alpha=2.5) | lora(8, 2.5, "other"))
    assert found["ss_network_dim"] == "Dynamic" and found["ss_network_alpha"] == "2.5"


def test_the_library_reads_it_back(tmp_path):
    tensors, metadata = lora(), {"zürich": "ü", "a": '"quoted"\n'}
    data = serialise(tensors, metadata)
    (tmp_path / "m.safetensors").write_bytes(data)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        found = file.metadata()
    plain = save(tensors)
    body = plain[8 + int.from_bytes(plain[:8], "little") :]
    assert found == {**metadata, "sshs_model_hash": hashlib.sha256(body).hexdigest()}
    loaded = load(data)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_the_keys_are_sorted_and_the_tensors_aligned():
    data = serialise(lora(), {"b": "1", "a": "2"})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert next(iter(header)) == "__metadata__" and list(header["__metadata__"]) == ["a", "b", "sshs_model_hash"]
    assert length % 8 == 0


def test_the_same_bytes_in_every_process():
    script = (
        "import hashlib, torch; from tests.unit.training.methods.lora import test_webui_metadata as t\n"
        "print(hashlib.sha256(t.serialise(t.lora(), t.described(t.lora()))).hexdigest())"
    )
    digests = {hashlib.sha256(serialise(lora(), described(lora()))).hexdigest()}
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1
