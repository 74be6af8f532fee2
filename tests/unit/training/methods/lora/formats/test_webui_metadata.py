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

from engine.models.families.sdxl.spec import SPEC as XL
from engine.training.methods.lora.formats.webui_metadata import describe, serialise
from tests.support.abouts import COMMIT, TAGS, about_of, base_of, task_of


def lora(rank=4, alpha=4.0, module="lora_unet_mid_block_attentions_0_proj_in"):
    return {
        f"{module}.lora_down.weight": torch.arange(rank * 6, dtype=torch.float32).reshape(rank, 6),
        f"{module}.lora_up.weight": torch.ones(5, rank),
        f"{module}.alpha": torch.tensor(alpha),
    }


def sd(width, identity=f"org/model@{COMMIT}"):
    return base_of(identity, configs={"unet": {"cross_attention_dim": width}})


def described(tensors, base=None, **changes):
    return describe(tensors, about_of(base, **changes))


def test_what_is_said():
    assert described(lora()) == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "LoRA, 9 steps",
        "modelspec.description": "LoRA for org/model, trained with sd-lora-task for 9 steps",
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
        "ss_max_train_steps": "20",
        "ss_epoch": "5",
        "ss_num_epochs": "12",
        "ss_learning_rate": "0.0006000000000000001",
        "ss_unet_lr": "0.0006000000000000001",
        "ss_text_encoder_lr": "None",
        "ss_lr_scheduler": "constant",
        "ss_lr_warmup_steps": "500",
        "ss_optimizer": "adamw(betas=(0.9, 0.999), weight_decay=0.01, eps=1e-08)",
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "6",
        "ss_gradient_accumulation_steps": "3",
        "ss_max_grad_norm": "1.0",
        "ss_min_snr_gamma": "None",
        "ss_noise_offset": "None",
        "ss_zero_terminal_snr": "False",
        "ss_mixed_precision": "no",
        "ss_seed": "0",
        "ss_network_dropout": "0",
        "ss_num_train_images": "10",
        "ss_num_batches_per_epoch": "5",
        "ss_enable_bucket": "False",
        "ss_flip_aug": "False",
        "ss_random_crop": "True",
        "ss_shuffle_caption": "False",
        "ss_keep_tokens": "0",
        "ss_caption_dropout_rate": "0.0",
        "ss_max_token_length": "None",
        "ss_tag_frequency": json.dumps(TAGS),
    }


def test_a_trigger_word_a_licence_and_a_part_of_the_timesteps():
    task = task_of('sks "x"\n', train_args={"min_timestep": 100, "max_timestep": 500})
    found = described(lora(), base_of(f"runwayml/stable-diffusion-v1-5@{COMMIT}"), task=task)
    assert found["modelspec.trigger_phrase"] == 'sks "x"\n'
    assert 'sks "x"' in found["modelspec.usage_hint"] and 'sks "x"' in found["modelspec.title"]
    assert found["modelspec.license"] == "creativeml-openrail-m"
    assert found["modelspec.timestep_range"] == "100,499"


@pytest.mark.parametrize(
    "optimizer, constants", [("lion", "betas=(0.9, 0.999), weight_decay=0.01"), ("adafactor", "weight_decay=0.01")]
)
def test_an_optimizer_is_said_with_the_constants_that_it_reads(optimizer, constants):
    found = described(lora(), task=task_of(train_args={"optimizer": optimizer}))
    assert found["ss_optimizer"] == f"{optimizer}({constants})"


def test_how_a_training_is_cut_and_shared_changes_nothing():
    """Two processes with an accumulation of three are one process with an accumulation of six."""
    found = [
        described(lora(), micro_batches=6, task=task_of(train_args={"gradient_accumulation_steps": k, **length}))
        for k, length in ((3, {"num_train_steps": 1}), (6, {"num_train_epochs": 7}))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "base, version, v2, architecture",
    [
        (sd(768), "sd_v1", "False", "stable-diffusion-v1/lora"),
        (sd(768), "sd_v1_v", "False", "stable-diffusion-v1/lora"),
        (sd(1024), "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        (sd(1024), "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        (base_of(spec=XL), "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_what_loras_are_sorted_by(base, version, v2, architecture):
    """AUTOMATIC1111 takes `sdxl_…` for XL, else `ss_v2` "True" for SD 2.x, else SD 1.x."""
    found = described(lora(), base, prediction_type="v_prediction" if version.endswith("_v") else "epsilon")
    assert (found["ss_base_model_version"], found["ss_v2"]) == (version, v2)
    assert found["modelspec.architecture"] == architecture


def test_a_velocity_prediction_and_a_base_without_a_name():
    base = sd(1024, "sha256:" + "0123456789abcdef" * 4)
    found = described(lora(), base, prediction_type="v_prediction")
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
    digest = hashlib.sha256(body).hexdigest()
    assert found == {**metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    loaded = load(data)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_the_keys_are_sorted_and_the_tensors_aligned():
    data = serialise(lora(), {"b": "1", "a": "2"})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert next(iter(header)) == "__metadata__" and list(header["__metadata__"]) == [
        "a",
        "b",
        "modelspec.hash_sha256",
        "sshs_model_hash",
    ]
    assert length % 8 == 0


def test_the_same_bytes_in_every_process():
    script = (
        "import hashlib, torch; from tests.unit.training.methods.lora.formats import test_webui_metadata as t\n"
        "print(hashlib.sha256(t.serialise(t.lora(), t.described(t.lora()))).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(serialise(lora(), described(lora()))).hexdigest()
