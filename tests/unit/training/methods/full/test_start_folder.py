"""A folder of a whole model's weights to start from."""

import hashlib

import pytest

from engine.core.errors import CheckpointError
from engine.training.methods.registry import METHODS, load_parent
from tests.unit.results.test_checkpoint import write

CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
SHARDS = [f"unet/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
TEXTS = ["text_encoder/model.safetensors", "text_encoder/config.json"]


def load(folder, names):
    return load_parent(write(folder, {name: name.encode() for name in names}), METHODS["full"])


@pytest.mark.parametrize(
    "names, read",
    [
        ([CONFIG, WEIGHTS], [WEIGHTS, CONFIG]),
        ([CONFIG, INDEX, *SHARDS], [*SHARDS, INDEX, CONFIG]),
        ([CONFIG, WEIGHTS, *TEXTS, "model_index.json", "vae/config.json"], [WEIGHTS, CONFIG, *TEXTS]),
        # What Diffusers' script saves beside the weights.
        ([CONFIG, WEIGHTS, "unet_ema/config.json", "optimizer.bin", "random_states_0.pkl"], [WEIGHTS, CONFIG]),
    ],
)
def test_the_files_that_count(tmp_path, names, read):
    found = load(tmp_path, names)
    assert list(found.hashes) == read
    assert found.digest == hashlib.sha256("".join(read).encode()).hexdigest()


@pytest.mark.parametrize(
    "names, words",
    [
        (["README.md"], r"no denoiser in Diffusers' layout \(transformer/ or unet/ with config.json"),
        (
            ["config.json", "diffusion_pytorch_model.safetensors"],
            "give the folder above it, in which it is called transformer/ or unet/",
        ),
        ([CONFIG], "unet is incomplete: expected config.json and all safetensors weights"),
        ([WEIGHTS], "unet is incomplete: .* found diffusion_pytorch_model.safetensors"),
        ([CONFIG, SHARDS[0], INDEX], "unet is incomplete"),
        ([CONFIG, "unet/diffusion_pytorch_model.fp16.safetensors"], "no variant, no .bin.*, found config.json, diff"),
        ([CONFIG, "unet/diffusion_pytorch_model.bin"], "found config.json, diffusion_pytorch_model.bin"),
        ([CONFIG, WEIGHTS, "text_encoder/config.json"], "text_encoder is incomplete"),
    ],
)
def test_what_is_missing_is_named(tmp_path, names, words):
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, names)


def test_a_link_is_not_followed(tmp_path):
    write(tmp_path / "own", {CONFIG: b"{}"})
    write(tmp_path / "other", {"secret": b"weights"})
    (tmp_path / "own" / WEIGHTS).symlink_to(tmp_path / "other" / "secret")
    with pytest.raises(CheckpointError, match="is a link or not a file"):
        load_parent(tmp_path / "own", METHODS["full"])


def test_an_output_folder_is_answered_with_its_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=f"--checkpoint {tmp_path / 'checkpoint'}$"):
        load(tmp_path, [f"checkpoint/{CONFIG}", f"checkpoint/{WEIGHTS}"])


@pytest.mark.parametrize("name", [CONFIG, INDEX])
def test_a_description_that_is_too_large_is_not_parsed(tmp_path, name):
    write(tmp_path, dict.fromkeys([CONFIG, INDEX, *SHARDS], b"{}"))
    with (tmp_path / name).open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="too many for a configuration or an index"):
        load_parent(tmp_path, METHODS["full"])
