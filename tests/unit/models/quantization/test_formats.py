"""Quantised weights against the definitions of their formats."""

import pytest
import torch

from engine.models.quantization.formats import FORMATS, NF4
from engine.models.quantization.rule import quantised_bytes


def weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 7


def there_and_back(name, matrix):
    codes, scales = FORMATS[name].quantise(matrix)
    return FORMATS[name].dequantise(codes, scales, tuple(matrix.shape))


@pytest.fixture(params=list(FORMATS))
def name(request):
    return request.param


@pytest.mark.parametrize("shape", [(8, 64), (3, 5), (1, 1), (7, 100)])
def test_it_takes_the_bytes_that_are_predicted(name, shape):
    stored = FORMATS[name].quantise(weight(*shape))
    assert sum(tensor.nbytes for tensor in stored) == quantised_bytes(name, "blocks.0.to_q", *shape)
    assert there_and_back(name, weight(*shape)).shape == shape


def test_what_is_quantised_once_stays(name):
    once = there_and_back(name, weight(16, 96))
    assert torch.allclose(there_and_back(name, once), once, rtol=1e-6, atol=0)


def test_zeros_and_numbers_too_small_for_a_scale_are_finite(name):
    assert not there_and_back(name, torch.zeros(2, 64)).any()
    assert bool(there_and_back(name, torch.full((2, 64), 1e-45)).isfinite().all())


def test_the_input_is_left_alone(name):
    original = weight(4, 64)
    there_and_back(name, original).zero_()
    assert torch.equal(original, weight(4, 64))


def test_int8_is_the_nearest_of_255_steps_of_each_row():
    original = weight(5, 32)
    step = original.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((there_and_back("int8", original) - original).abs() <= step * 0.5001).all())


def test_fp8_is_the_nearest_float8_of_each_row_up_to_its_largest():
    original = weight(5, 32)
    scale = original.abs().amax(dim=1, keepdim=True) / 448
    expected = (original / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(there_and_back("fp8", original), expected)
    assert bool((expected - original).abs().max() <= original.abs().max() / 16)


def test_nf4_is_the_nearest_of_16_values_of_each_block():
    original = weight(6, 32)
    blocks = original.view(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[(blocks[..., None] / largest[..., None] - values).abs().argmin(dim=-1)] * largest
    assert torch.equal(there_and_back("nf4", original), nearest.view(6, 32))
