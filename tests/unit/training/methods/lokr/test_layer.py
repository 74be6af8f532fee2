"""What is added to a layer's output is (W₁ ⊗ W₂)·x."""

import pytest
import torch

from engine.training.methods.lokr.layer import change, product
from engine.training.methods.lokr.split import split

LAYERS = {
    "linear": (lambda: torch.nn.Linear(24, 60), (2, 5, 24)),
    "vector": (lambda: torch.nn.Linear(24, 60), (2, 24)),
    "pointwise": (lambda: torch.nn.Conv2d(24, 12, 1), (2, 24, 5, 7)),
    "convolution": (lambda: torch.nn.Conv2d(24, 12, 3, padding=1), (2, 24, 5, 7)),
    "strided": (lambda: torch.nn.Conv2d(24, 60, (3, 5), stride=2, padding=(2, 1), dilation=(2, 1)), (3, 24, 9, 8)),
    "reflecting": (lambda: torch.nn.Conv2d(24, 12, 3, padding=1, padding_mode="reflect"), (2, 24, 5, 7)),
}


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_without_the_product_it_is_the_same(name, rank):
    make, size = LAYERS[name]
    layer, generator = make().double(), torch.Generator().manual_seed(3)
    one = split(name, tuple(layer.weight.shape), rank, None)
    assert one.rank == (1 if rank == 1 else None)
    factors = {
        end: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for end, shape in one.shapes.items()
    }
    x = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    found = change(layer, one, x, *factors.values())
    with torch.no_grad():
        layer.bias.zero_()
    whole = {"weight": product(factors).reshape(layer.weight.shape)}
    expected = torch.func.functional_call(layer, whole, (x,))
    torch.testing.assert_close(found, expected)
    leaves = [x, *factors.values()]
    for own, wanted in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)), strict=True):
        torch.testing.assert_close(own, wanted)
