"""How far apart two whole models are."""

import math

import pytest
import torch
from safetensors.torch import save_file

from engine.commands.compare import compare
from engine.core.errors import CheckpointError
from engine.training.methods.full.distance import distances, is_in

NAMES = ("conv.weight", "conv.bias")


def write(folder, values, component="unet", shards=1):
    (folder / component).mkdir(parents=True)
    (folder / component / "config.json").write_text("{}")
    stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
    tensors = {name: torch.full((2, 2), value, dtype=torch.bfloat16) for name, value in zip(NAMES, values, strict=True)}
    for k in range(shards):
        own = dict(list(tensors.items())[k::shards])
        ending = f"-{k + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(own, folder / component / f"{stem}{ending}.safetensors")
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_each_tensor_by_itself(tmp_path, shards):
    one = write(write(tmp_path / "one", (1.0, 2.0), shards=shards), (0.5, 0.5), "text_encoder")
    other = write(write(tmp_path / "other", (1.0, 4.0)), (0.5, 0.5), "text_encoder")
    found = distances(one, other)
    assert found.apart == {
        "text_encoder.conv.bias": 0.0,
        "text_encoder.conv.weight": 0.0,
        "unet.conv.bias": 4.0,
        "unet.conv.weight": 0.0,
    }
    assert found.norms["unet.conv.bias"] == 8.0 and found.norms["text_encoder.conv.bias"] == 1.0
    relative = 4.0 / math.sqrt(8.0**2 + 2.0**2 + 1.0**2 + 1.0**2)
    lines = compare(one, other)
    assert f"relative distance {relative:.3e} over 4 tensors (0: equal)" in lines[0]
    assert "largest 5.000e-01, in 'unet.conv.bias'" in lines[1]


def test_no_whole_model(tmp_path):
    assert not is_in(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "000003.safetensors").write_bytes(b"")
    assert not is_in(tmp_path)


@pytest.mark.parametrize("change", ["more", "shape", "damaged", "a LoRA"])
def test_what_cannot_be_compared(tmp_path, change):
    one, other = write(tmp_path / "one", (1.0, 2.0)), write(tmp_path / "other", (1.0, 2.0))
    path = other / "unet" / "diffusion_pytorch_model.safetensors"
    if change == "more":
        save_file({name: torch.ones(2, 2) for name in (*NAMES, "conv.more")}, path)
    elif change == "shape":
        save_file({name: torch.ones(4) for name in NAMES}, path)
    elif change == "damaged":
        path.write_bytes(b"no safetensors")
    else:
        path.unlink()
    with pytest.raises(CheckpointError):
        compare(one, other)
