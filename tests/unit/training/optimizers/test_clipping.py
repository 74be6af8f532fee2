"""Clipping against torch's own."""

import pytest
import torch

from engine.training.optimizers import clipping
from tests.unit.training.optimizers.test_adamw import gradients, parameters


def clip(gradients, max_norm):
    """As the trainer does it: the factor is read from the device before it is applied."""
    norm = torch.nn.utils.get_total_norm(gradients)
    clipping.scale(gradients, clipping.clip_factor(norm, max_norm).item())
    return norm


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("max_norm", [0.5, 1.0])
def test_is_torchs_own(scale, max_norm):
    named = parameters()
    for parameter, gradient in zip(named.values(), gradients(named, 0, scale), strict=True):
        parameter.grad = gradient
    ours = gradients(named, 0, scale)
    norm = clip(ours, max_norm)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(named.values(), max_norm))
    for gradient, parameter in zip(ours, named.values(), strict=True):
        assert torch.equal(gradient, parameter.grad)


def test_zero_switches_it_off_but_still_measures():
    ours = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert clip(ours, 0) == 5.0
    assert ours == [torch.tensor([3.0]), torch.tensor([[4.0]])]
