"""Large frozen layers by products: torch's results and exact gradients, whatever the shape and order of memory."""

import copy

import pytest
import torch
from torch.nn import Conv2d, Linear

from engine.families import frozen
from engine.families.frozen import FrozenConv2d, FrozenLinear, use_products

pytestmark = pytest.mark.skipif(not frozen._IS_HERE, reason="torch without oneDNN, or another kind of processor")

WIDE = 288  # 288 x 288 is a large weight


def pair(layer, dtype=torch.float32):
    """A frozen layer as torch has it, and by products."""
    layer = layer.to(dtype).requires_grad_(False)
    fast = torch.nn.Sequential(copy.deepcopy(layer))
    use_products(fast)
    return layer, fast[0]


def results(layer, x, dtype=None):
    """Output and the gradient of the input."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return y, *torch.autograd.grad((y.float() * weights).sum(), [x])


def products(monkeypatch):
    """How many products there were so far: a list that grows."""
    made, real = [], frozen._product
    monkeypatch.setattr(frozen, "_product", lambda *args: made.append(1) or real(*args))
    return made


def require_same(found, expected, share=1e-5):
    for own, theirs in zip(found, expected, strict=True):
        assert own.shape == theirs.shape and own.dtype == theirs.dtype
        assert (own.float() - theirs.float()).norm() <= share * theirs.float().norm()


@pytest.mark.parametrize("shape", [(3, WIDE), (2, 5, WIDE)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer(shape, has_bias, monkeypatch):
    plain, fast = pair(Linear(WIDE, 2 * WIDE, bias=has_bias))
    x = torch.randn(shape)
    made = products(monkeypatch)
    require_same(results(fast, x), results(plain, x))
    require_same(results(fast, x.transpose(0, -2).contiguous().transpose(0, -2)), results(plain, x))
    assert len(made) == 4


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": (3, 1), "padding": (1, 0), "bias": False},
    {"kernel_size": (1, 3), "padding": 1, "stride": (2, 1)},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution(options, dtype, monkeypatch):
    plain, fast = pair(Conv2d(WIDE, 2 * WIDE, **options), dtype)
    assert isinstance(fast, FrozenConv2d)
    x = torch.randn(2, WIDE, 7, 6).to(dtype)
    made = products(monkeypatch)
    expected, share = results(plain, x), 1e-5 if dtype == torch.float32 else 0.01
    for order in (torch.contiguous_format, torch.channels_last):
        require_same(results(fast, x.contiguous(memory_format=order)), expected, share)
    assert len(made) == 4


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolutions_gradient_is_exact(options):
    """In float64 by torch's product, since oneDNN has none: patches and their sums are ours."""
    layer = Conv2d(3, 5, **options).double().requires_grad_(False)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_product", torch.nn.functional.linear)
        patch.setattr(frozen, "_SUM", torch.float64)
        arguments = (layer.weight, layer.bias, layer.stride, layer.padding)
        torch.testing.assert_close(frozen._FrozenPatches.apply(x, *arguments), layer(x))
        assert torch.autograd.gradcheck(lambda x: frozen._FrozenPatches.apply(x, *arguments), [x])


def test_many_pixels_go_through_torchs_convolution(monkeypatch):
    plain, fast = pair(Conv2d(WIDE, WIDE, 3, padding=1))
    made = products(monkeypatch)
    require_same(results(fast, torch.ones(1, WIDE, 12, 12)), results(plain, torch.ones(1, WIDE, 12, 12)))
    assert len(made) == 2  # 144 places, twice which are the 288 channels
    results(fast, torch.ones(1, WIDE, 12, 13))
    results(fast, torch.ones(2, WIDE, 12, 12))
    assert len(made) == 2


@pytest.mark.parametrize("arriving", [torch.float32, torch.bfloat16])
def test_under_autocast(arriving):
    x = torch.randn(2, WIDE, 4, 4).to(arriving)
    require_same(*(results(layer, x, torch.bfloat16) for layer in pair(Conv2d(WIDE, WIDE, 3), torch.bfloat16)), 0.01)
    x = x.permute(0, 2, 3, 1)
    for dtype in (torch.float32, torch.bfloat16):
        # Linear layers of a precision that autocast does not have, or that torch multiplies well itself: torch's bits.
        found = [results(layer, x, torch.bfloat16) for layer in pair(Linear(WIDE, WIDE), dtype)]
        assert all(map(torch.equal, *found))


def test_what_is_small_trained_or_special_stays_torchs():
    network = torch.nn.Sequential(
        Linear(WIDE, 8),
        Conv2d(16, 16, 3),
        Conv2d(WIDE, 4 * WIDE, 3, groups=2),
        Conv2d(WIDE, WIDE, 3, dilation=2),
        Conv2d(WIDE, WIDE, 3, padding_mode="circular"),
    )
    use_products(network)
    assert [type(layer) for layer in network] == [Linear, Conv2d, Conv2d, Conv2d, Conv2d]
    trained = torch.nn.Sequential(Linear(WIDE, WIDE), Conv2d(WIDE, WIDE, 1))
    use_products(trained)
    assert [type(layer) for layer in trained] == [FrozenLinear, FrozenConv2d]
    trained[0](torch.ones(2, WIDE)).sum().backward()
    trained[1](torch.ones(2, WIDE, 2, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_the_same_again_and_wherever_it_lies_in_memory():
    """Also of other alignment, and of threads' scratch that was used by others in between."""
    _, linear = pair(Linear(WIDE, WIDE))
    _, conv = pair(Conv2d(WIDE, WIDE, 3, padding=1))
    for layer, x in ((linear, torch.randn(50, WIDE)), (conv, torch.randn(1, WIDE, 8, 8))):
        first = results(layer, x)
        moved = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
        results(layer, torch.randn(x.shape))
        assert all(map(torch.equal, first, results(layer, moved)))
        storage = torch.empty(layer.weight.numel() + 3)[3:]
        layer.weight.data = storage.as_strided(layer.weight.shape, layer.weight.stride()).copy_(layer.weight)
        assert all(map(torch.equal, first, results(layer, x)))
