"""How far apart two LoKrs are."""

import pytest
import torch
from safetensors.torch import save_file

from engine.commands.compare import compare
from engine.core.errors import CheckpointError
from engine.training.methods.lokr.distance import distances
from engine.training.methods.lokr.layer import product
from engine.training.methods.lora.formats.start_file import LORA_FILE

SHAPES = {
    "unet.a": {".lokr_w1": (3, 4), ".lokr_w2": (5, 2, 3, 3)},
    "unet.b": {".lokr_w1": (2, 2), ".lokr_w2_a": (6, 2), ".lokr_w2_b": (2, 9)},
}


def write(folder, seed=0, change=0.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(9)
    tensors = {
        f"{module}{end}": torch.randn(shape, generator=generator) + change * torch.randn(shape, generator=other)
        for module, own in shapes.items()
        for end, shape in own.items()
    }
    folder.mkdir()
    save_file(tensors, folder / LORA_FILE)
    return {module: product({end: tensors[f"{module}{end}"].double() for end in own}) for module, own in shapes.items()}


@pytest.mark.parametrize("seed, change", [(0, 0.0), (0, 1e-5), (1, 0.0)])
def test_it_is_that_of_the_products(tmp_path, seed, change):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", seed, change)
    found = distances(tmp_path / "one", tmp_path / "other")
    for name in SHAPES:
        assert found.apart[name] == pytest.approx(float((one[name] - other[name]).norm()), rel=1e-6)
        assert found.norms[name] == pytest.approx(max(float(one[name].norm()), float(other[name].norm())))
    (line, *_) = compare(tmp_path / "one", tmp_path / "other")
    assert "over 2 modules" in line and ("distance 0.000e+00" in line) == (found.apart["unet.a"] == 0)


def test_what_cannot_be_compared(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "layers", shapes={"unet.a": SHAPES["unet.a"]})
    write(tmp_path / "factors", shapes=SHAPES | {"unet.b": {".lokr_w1": (3, 2), ".lokr_w2": (4, 9)}})
    (tmp_path / "lora").mkdir()
    save_file({"unet.a.lora_A.weight": torch.ones(1, 2)}, tmp_path / "lora" / LORA_FILE)
    for name, words in (("layers", "in one result only"), ("factors", "other factors"), ("lora", "is a LoKr, the oth")):
        with pytest.raises(CheckpointError, match=words):
            compare(tmp_path / "one", tmp_path / name)
