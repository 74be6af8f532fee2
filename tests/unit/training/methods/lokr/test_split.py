"""Weights are split as PEFT and LyCORIS split them."""

import pytest
import torch
from peft import LoKrConfig
from peft.tuners.lokr.layer import Linear, factorization

from engine.core.errors import TaskError
from engine.training.methods.lokr.split import LEFT, RIGHT, RIGHT_DOWN, RIGHT_UP, divide, split

FACTORS = (None, 2, 3, 4, 5, 7, 8, 12, 16, 64)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_size_is_divided_as_in_peft(factor):
    sizes = [*range(1, 700), 768, 1024, 1280, 1536, 2304, 2432, 3072, 3840, 5120, 10240, 18432]
    for size in sizes:
        if factor is None or size % factor or factor**2 <= size:
            assert divide(size, factor) == factorization(size, factor or -1)


@pytest.mark.parametrize("rank", [1, 4, 7, 8, 9, 10, 32])
@pytest.mark.parametrize("factor", [None, 4])
@pytest.mark.parametrize("sizes", [(320, 320), (768, 320), (320, 1280)])
def test_a_layers_tensors_are_pefts(rank, factor, sizes):
    inputs, outputs = sizes
    config = LoKrConfig(decompose_factor=factor or -1)
    with torch.device("meta"):
        layer = Linear(torch.nn.Linear(inputs, outputs), "default", config, r=rank, alpha=rank)
    expected = {
        f".{name.removesuffix('.default')}": tuple(tensor.shape)
        for name, tensor in layer.named_parameters()
        if "lokr" in name
    }
    assert split("x", (outputs, inputs), rank, factor).shapes == expected


def test_a_convolutions_kernel_belongs_to_the_second_factor():
    assert split("x", (64, 32, 3, 3), 2, None).shapes == {LEFT: (8, 4), RIGHT_UP: (8, 2), RIGHT_DOWN: (2, 72)}
    assert split("x", (64, 32, 3, 3), 4, None).shapes == {LEFT: (8, 4), RIGHT: (8, 8, 3, 3)}


def test_a_factor_that_other_programs_would_read_in_another_way_is_refused():
    """LyCORIS takes the smaller number for the first factor, PEFT the given one."""
    with pytest.raises(TaskError, match=r"lora\.factor: 32 is more than the square root of 320, a size of x"):
        split("x", (1280, 320), 4, 32)
    assert split("x", (1280, 320), 4, 16).left == (16, 16)
