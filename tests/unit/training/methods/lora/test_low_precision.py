"""A step's copy of the adapter: the bits of layers that cast for themselves, never an old one."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from engine.models.families.sd.spec import SPEC
from engine.task.task import Lora
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.low_precision import WorkingCopy

NARROW = [torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WIDTHS = (12, 21, 7, 33)
"""Odd, so that tensors in a row without gaps would begin anywhere."""


def network(dtype, *, device="cpu", **options):
    """Adapted layers one behind the other, the adapter not zero."""
    draw = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(*pair) for pair in pairwise(WIDTHS)]
    root = torch.nn.Sequential(*layers, torch.nn.Conv2d(1, 2, 3)).to(device, dtype)
    for parameter in root.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=draw) / 2).to(device, dtype)
    adapter = attach({"unet": root}, Lora(**{"rank": 3, "alpha": 2, "target_modules": "[012]"} | options), 0, spec=SPEC)
    for parameter in adapter.parameters.values():
        parameter.data = (torch.randn(parameter.shape, generator=draw) / 3).to(device)
    return root, adapter


def gradients(root, wanted, dtype, *, seed=1, recompute=False):
    device = wanted[0].device
    x = torch.randn(5, WIDTHS[0], generator=torch.Generator().manual_seed(seed)).to(device, dtype).requires_grad_()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        y = x
        for layer in root[:3]:
            y = checkpoint(layer, y, use_reentrant=False) if recompute else layer(y)
            y = torch.nn.functional.silu(y)
    return torch.autograd.grad(y.float().square().sum(), wanted)


def bits(tensors):
    return [tensor.to("cpu", torch.float32).numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_layers_that_cast_for_themselves(dtype, recompute, device):
    root, adapter = network(dtype, device=device)
    parameters = list(adapter.parameters.values())
    expected = [gradients(root, parameters, dtype, seed=seed) for seed in (1, 2)]
    with WorkingCopy(adapter.parameters, adapter.fused, dtype).taken() as trained:
        found = [gradients(root, trained, dtype, seed=seed, recompute=recompute) for seed in (1, 2)]
    assert {tensor.dtype for micro_batch in found for tensor in micro_batch} == {dtype}
    assert list(map(bits, found)) == list(map(bits, expected))
    assert len(set(bits(found[0]))) == len(parameters) == 6


@pytest.mark.parametrize("dtype", NARROW)
def test_each_copy_has_the_values_and_the_place_of_a_tensor_of_its_own(dtype):
    _, adapter = network(dtype)
    with WorkingCopy(adapter.parameters, adapter.fused, dtype).taken() as trained:
        for copy, parameter in zip(trained, adapter.parameters.values(), strict=True):
            own = parameter.detach().to(dtype)
            assert torch.equal(copy, own) and copy.stride() == own.stride() and copy.is_leaf
            assert (copy.data_ptr() - trained[0].data_ptr()) % 512 == 0 and copy.data_ptr() % 64 == 0


def test_it_is_taken_anew_and_only_looked_at_while_it_is_taken():
    root, adapter = network(torch.bfloat16)
    working = WorkingCopy(adapter.parameters, adapter.fused, torch.bfloat16)
    parameters = list(adapter.parameters.values())
    for change in (0.0, 0.5, 0.5):
        for parameter in parameters:
            parameter.data += change
        # As validation does, between steps: the parameters themselves, as they now are.
        expected = gradients(root, parameters, torch.bfloat16)
        assert {tensor.dtype for tensor in expected} == {torch.float32}
        with working.taken() as trained:
            assert bits(gradients(root, trained, torch.bfloat16)) == bits(expected)
            y = root[0](torch.ones(1, WIDTHS[0], dtype=torch.bfloat16))
            assert torch.autograd.grad(y.sum(), parameters[0], allow_unused=True) == (None,)


def test_it_is_put_away_when_the_step_fails():
    root, adapter = network(torch.bfloat16)
    working = WorkingCopy(adapter.parameters, adapter.fused, torch.bfloat16)
    with pytest.raises(KeyError), working.taken():
        raise KeyError
    gradients(root, list(adapter.parameters.values()), torch.bfloat16)


@pytest.mark.parametrize(
    "dtype, options",
    [
        (torch.float32, {}),
        (torch.bfloat16, {"target_modules": "[0123]"}),  # a convolution, which is PEFT's
        (torch.bfloat16, {"dropout": 0.1}),
    ],
)
def test_there_is_none_where_it_would_not_be_all_that_is_trained(dtype, options):
    root, adapter = network(dtype, **options)
    with WorkingCopy(adapter.parameters, adapter.fused, dtype).taken() as trained:
        assert all(map(lambda own, parameter: own is parameter, trained, adapter.parameters.values()))
        with adapter.dropping.at(0):
            found = gradients(root, trained[:6], dtype)
        assert all(gradient.any() for gradient in found)


def test_a_layer_that_computes_in_another_dtype_is_refused():
    root, adapter = network(torch.bfloat16)
    with (
        WorkingCopy(adapter.parameters, adapter.fused, torch.float16).taken(),
        pytest.raises(AssertionError, match="another dtype"),
    ):
        root[0](torch.ones(1, 12).bfloat16())


def test_one_adapter_has_one():
    _, adapter = network(torch.bfloat16)
    WorkingCopy(adapter.parameters, adapter.fused, torch.bfloat16)
    with pytest.raises(AssertionError, match="another copy"):
        WorkingCopy(adapter.parameters, adapter.fused, torch.bfloat16)


class Casts(TorchDispatchMode):
    """How many operations cast."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counted[function.overloadpacket] += 1
        return function(*args, **(kwargs or {}))


def test_no_layer_casts():
    root, adapter = network(torch.bfloat16)
    parameters = list(adapter.parameters.values())
    working = WorkingCopy(adapter.parameters, adapter.fused, torch.bfloat16)
    counts = []
    with Casts() as casts:
        gradients(root, parameters, torch.bfloat16)
    counts.append(casts.counted[torch.ops.aten._to_copy])
    with working.taken() as trained, Casts() as casts:
        gradients(root, trained, torch.bfloat16)
    counts.append(casts.counted[torch.ops.aten._to_copy])
    assert counts[0] - counts[1] == 2 * len(parameters)
