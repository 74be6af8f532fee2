"""Blocks that wait in main memory: when they are copied, and what stays where they are not."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from engine.models.components import offloading
from engine.models.components.offloading import named_weights, offload

CPU = torch.device("cpu")


class Denoiser(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16), torch.nn.BatchNorm1d(16))
            for _ in range(count)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block.__call__, x, use_reentrant=False)
        return x


def denoiser_of(count):
    torch.manual_seed(0)
    return Denoiser(count).eval().requires_grad_(False)


def results(denoiser):
    x = torch.linspace(-1, 1, 48).view(3, 16).requires_grad_()
    y = denoiser(x)
    return y, *torch.autograd.grad(y.square().sum(), x)


@pytest.fixture
def copied(monkeypatch):
    """The sizes of the copies, in their order."""
    found, copy_to = [], offloading._Block.copy_to

    def recorded(block, memory):
        found.append(block)
        copy_to(block, memory)

    monkeypatch.setattr(offloading._Block, "copy_to", recorded)
    return found


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_block_is_copied_once_in_each_pass(copied, count):
    plain, denoiser = denoiser_of(count), denoiser_of(count)
    offload(denoiser, ("blocks",), CPU)
    for _ in range(3):
        for found, expected in zip(results(denoiser), results(plain), strict=True):
            assert torch.equal(found, expected)
    assert len(set(copied)) == count and len(copied) == 3 * 2 * count
    copied.clear()
    with torch.no_grad():
        for _ in range(3):
            denoiser(torch.zeros(3, 16))
    assert len(copied) == 3 * count


def test_a_block_that_fails_leaves_nothing_behind():
    denoiser = denoiser_of(2)
    offload(denoiser, ("blocks",), CPU)
    resting = dict(denoiser.state_dict(keep_vars=True))
    with pytest.raises(RuntimeError):
        denoiser.blocks[0](torch.zeros(3, 5))
    assert all(resting[name] is tensor for name, tensor in denoiser.state_dict(keep_vars=True).items())
    values = {name: tensor.untyped_storage().nbytes() for name, tensor in resting.items() if name.startswith("blocks")}
    assert values and max(values.values()) <= 8, "one value stands for each tensor"


def test_parameters_that_are_added_later_are_trained():
    denoiser = denoiser_of(3)
    offload(denoiser, ("blocks",), CPU)
    added = torch.nn.Parameter(torch.ones(16))
    denoiser.blocks[1].register_parameter("added", added)
    own = denoiser.blocks[1].forward
    denoiser.blocks[1].forward = lambda x: own(x) * added
    x = torch.linspace(-1, 1, 48).view(3, 16)
    assert torch.autograd.grad(denoiser(x).square().sum(), added)[0].abs().sum() > 0
    assert denoiser.to(CPU).blocks[1].added is added


def test_weights_have_their_names_and_values():
    plain, denoiser = denoiser_of(3), denoiser_of(3)
    offload(denoiser, ("blocks",), CPU)
    for module in (plain, denoiser):
        found = {name: tensor.clone() for name, tensor in named_weights(module)}
        assert found.keys() == dict(plain.named_parameters()).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in plain.named_parameters())
    values = dict(denoiser.named_parameters())
    assert values["blocks.1.0.weight"].untyped_storage().nbytes() <= 8, "they are in main memory again"
