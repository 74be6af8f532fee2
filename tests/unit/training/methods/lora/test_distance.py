"""How far apart two LoRAs are."""

import numpy as np
import pytest
from safetensors.numpy import save

from engine.commands.compare import compare
from engine.training.methods.lora.distance import distances, norm, read

draws = np.random.default_rng(0)


def lora(rank=3, *, scale=1.0, modules=("unet.a", "unet.b"), seed=0):
    own = np.random.default_rng(seed)
    found = {}
    for module in modules:
        found[f"{module}.lora_A.weight"] = own.standard_normal((rank, 8)).astype(np.float32)
        found[f"{module}.lora_B.weight"] = scale * own.standard_normal((5, rank)).astype(np.float32)
    return found


def write(folder, tensors):
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(save(tensors))
    return folder


def test_the_norm_is_that_of_the_product():
    down, up = draws.standard_normal((4, 30)), draws.standard_normal((20, 4))
    assert norm(down, up) == pytest.approx(np.linalg.norm(up @ down), rel=1e-13)


def test_the_distance_is_that_of_the_products_whatever_the_ranks(tmp_path):
    folders = [write(tmp_path / "one", lora(3)), write(tmp_path / "other", lora(6, seed=1))]
    found = distances(*folders)
    both = [read(folder) for folder in folders]
    for module in ("unet.a", "unet.b"):
        dense = [up @ down for down, up in (pairs[module] for pairs in both)]
        assert found.apart[module] == pytest.approx(np.linalg.norm(dense[0] - dense[1]), rel=1e-13)
        assert found.norms[module] == pytest.approx(max(map(np.linalg.norm, dense)), rel=1e-13)


def test_other_factors_of_the_same_product_are_equal(tmp_path):
    tensors = lora()
    turned = {name: value * (2.0 if "lora_A" in name else 0.5) for name, value in tensors.items()}
    found = distances(write(tmp_path / "one", tensors), write(tmp_path / "other", turned))
    assert max(found.apart.values()) < 1e-14


def test_a_small_difference_keeps_its_digits(tmp_path):
    one = lora(scale=1.0)
    other = {name: value.copy() for name, value in one.items()}
    other["unet.a.lora_B.weight"][0, 0] += 1e-6
    delta = float(other["unet.a.lora_B.weight"][0, 0]) - float(one["unet.a.lora_B.weight"][0, 0])
    found = distances(write(tmp_path / "one", one), write(tmp_path / "other", other)).apart
    expected = abs(delta) * np.linalg.norm(one["unet.a.lora_A.weight"][0].astype(np.float64))
    assert found["unet.a"] == pytest.approx(expected, rel=1e-6)
    assert found["unet.b"] == 0.0


def test_convolutions_and_modules_of_one_alone(tmp_path):
    convolution = {
        "unet.c.lora_A.weight": draws.standard_normal((2, 4, 3, 3)).astype(np.float32),
        "unet.c.lora_B.weight": draws.standard_normal((6, 2, 1, 1)).astype(np.float32),
    }
    one, other = write(tmp_path / "one", lora() | convolution), write(tmp_path / "other", lora())
    found = distances(one, other).apart
    up, down = convolution["unet.c.lora_B.weight"].reshape(6, 2), convolution["unet.c.lora_A.weight"].reshape(2, 36)
    assert found["unet.c"] == pytest.approx(np.linalg.norm(up.astype(np.float64) @ down), rel=1e-6)
    assert "largest 1.000e+00, in 'unet.c'" in "\n".join(compare(one, other))


def test_untrained_ones_are_equal(tmp_path):
    one, other = write(tmp_path / "one", lora(scale=0.0)), write(tmp_path / "other", lora(scale=0.0, seed=1))
    assert "relative distance 0.000e+00" in compare(one, other)[0]
