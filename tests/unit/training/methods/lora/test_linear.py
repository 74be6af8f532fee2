"""One operation for a frozen layer and its LoRA: PEFT's result and exact gradients, with less work and memory."""

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from engine.models.quantization.layer import FrozenWeight
from engine.training.methods.lora.dropout import AddressedDropout, Dropping
from engine.training.methods.lora.linear import LoraLinear, _LoraProduct
from tests.support.tolerance import assert_equal_but_for_rounding

IN, OUT, RANK = 12, 20, 3
SUMMED = 2 * 7 * OUT
"""Terms of the longest sums: those of the gradients of A and B, over all rows and what follows them."""


def layers(*, alpha=RANK, bias=True, dtype=torch.float32, rslora=False):
    """The same adapted layer, ours and PEFT's, with an adapter that is not zero."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for cls in (LoraLinear, PeftLinear):
        root = torch.nn.ModuleDict({"to_q": torch.nn.Linear(IN, OUT, bias=bias)})
        config = LoraConfig(r=RANK, lora_alpha=alpha, use_rslora=rslora, target_modules="to_q")
        config._register_custom_module({torch.nn.Linear: cls})
        inject_adapter_in_model(config, root.requires_grad_(False), adapter_name="default")
        found.append(root["to_q"])
    ours, pefts = found
    for parameter in ours.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    pefts.load_state_dict(ours.state_dict())
    for layer in found:
        layer.base_layer.to(dtype)
    return ours, pefts


def factors(layer):
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def results(layer, x, precision=None):
    """Output, and the gradients of x, A and B."""
    x = x.detach().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        y = layer(x)
    wanted = [x, *factors(layer)] if x.requires_grad else factors(layer)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return y, *torch.autograd.grad((y.float() * weights).sum(), wanted)


@pytest.mark.parametrize("shape", [(5, IN), (2, 7, IN)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_are_exact(shape, scale, has_bias):
    draw = torch.Generator().manual_seed(1)
    x, weight, bias, down, up = (
        torch.randn(size, generator=draw, dtype=torch.float64)
        for size in (shape, (OUT, IN), (OUT,), (RANK, IN), (OUT, RANK))
    )
    trained = [tensor.requires_grad_() for tensor in (x, down, up)]
    frozen = FrozenWeight((weight,), lambda stored: stored, weight.dtype)
    assert torch.autograd.gradcheck(
        lambda x, down, up: _LoraProduct.apply(x, frozen, bias if has_bias else None, down, up, scale), trained
    )


@pytest.mark.parametrize("options", [{}, {"alpha": 1}, {"alpha": 8, "rslora": True}, {"bias": False}])
@pytest.mark.parametrize("shape", [(5, IN), (2, 7, IN)])
def test_it_is_pefts_layer(options, shape):
    ours, pefts = layers(**options)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for own, expected in zip(results(ours, x), results(pefts, x), strict=True):
        assert own.shape == expected.shape and own.dtype == expected.dtype
        assert_equal_but_for_rounding(own, expected, operations=SUMMED)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arriving", [torch.float32, "autocast's"])
def test_it_is_pefts_layer_under_autocast(precision, arriving):
    ours, pefts = layers(dtype=precision, alpha=2)
    x = torch.randn(2, 7, IN, generator=torch.Generator().manual_seed(2)).to(precision)
    x = (x.float() if arriving == torch.float32 else x).requires_grad_()
    found, expected = results(ours, x, precision), results(pefts, x, precision)
    assert [tensor.dtype for tensor in found] == [precision, x.dtype, torch.float32, torch.float32]
    for own, theirs in zip(found, expected, strict=True):
        assert own.dtype == theirs.dtype
        torch.testing.assert_close(own.float(), theirs.float(), rtol=0.05, atol=0.05)


def test_outside_of_autocast_the_base_gives_the_dtype():
    """As in validation."""
    ours, pefts = layers(dtype=torch.bfloat16)
    x = torch.randn(2, 7, IN).to(torch.bfloat16)
    with torch.no_grad():
        assert ours(x).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x), pefts(x), rtol=0.05, atol=0.05)


def test_views_in_any_order_are_taken():
    ours, pefts = layers()
    x = torch.randn(IN, 7, 2).permute(2, 1, 0).requires_grad_()
    for own, expected in zip(results(ours, x), results(pefts, x), strict=True):
        assert_equal_but_for_rounding(own, expected, operations=SUMMED)


def test_an_adapter_of_zeros_changes_no_bit():
    ours, _ = layers()
    torch.nn.init.zeros_(factors(ours)[1])
    x = torch.randn(2, 7, IN)
    assert torch.equal(ours(x), ours.base_layer(x))


def test_switched_off_it_is_the_base_layer():
    ours, _ = layers()
    x = torch.randn(2, 7, IN)
    ours.enable_adapters(False)
    assert torch.equal(ours(x), ours.base_layer(x))
    ours.enable_adapters(True)
    assert not torch.equal(ours(x), ours.base_layer(x))


def test_inputs_are_dropped_while_a_micro_batch_is_under_way():
    ours, pefts = layers()
    dropping = Dropping()
    for layer in (ours, pefts):
        layer.lora_dropout["default"] = AddressedDropout(0.5, seed=1, layer="to_q", dropping=dropping)
    x = torch.randn(2, 7, IN, requires_grad=True)
    whole = results(ours, x)
    with dropping.at(4):
        dropped = results(ours, x)
        assert all(map(torch.equal, dropped, results(pefts, x)))
    assert not torch.equal(dropped[0], whole[0])


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_computed_again_it_is_the_same(precision):
    ours, _ = layers(dtype=precision or torch.float32)
    x = torch.randn(2, 7, IN, requires_grad=True)
    again = copy.copy(ours)
    again.forward = lambda x: checkpoint(ours, x, use_reentrant=False)
    assert all(map(torch.equal, results(ours, x, precision), results(again, x, precision)))


def saved_bytes(adapted, x, precision):
    """What three projections of one input keep for the backward pass, besides weights."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for layer in adapted for p in layer.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", precision):
        sum(layer(x).float().sum() for layer in adapted)
    return sum(size for size, _ in kept.values())


def test_the_projections_of_one_input_share_what_is_kept_of_it():
    pairs = [layers(dtype=torch.bfloat16) for _ in range(3)]
    x = torch.randn(1, 1000, IN, requires_grad=True).to(torch.bfloat16)
    ours, pefts = (saved_bytes([pair[k] for pair in pairs], x, torch.bfloat16) for k in (0, 1))
    narrow = 3 * (1000 * RANK + RANK * (IN + OUT)) * 2
    assert ours == x.nbytes + narrow
    assert pefts > 3 * x.nbytes


def kernels(layer, x, precision):
    """How many operations that are no views a step through one layer makes."""

    counted = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:
                counted[str(function)] += 1
            return function(*args, **(kwargs or {}))

    x = x.detach().requires_grad_()
    with Count():
        with torch.autocast("cpu", precision):
            y = layer(x)
        torch.autograd.grad(y, [x, *factors(layer)], torch.ones_like(y))
    return counted.total()


def test_it_makes_far_fewer_operations():
    ours, pefts = layers(dtype=torch.bfloat16)
    x = torch.randn(2, 7, IN).to(torch.bfloat16)
    assert kernels(ours, x, torch.bfloat16) <= 0.7 * kernels(pefts, x, torch.bfloat16)
