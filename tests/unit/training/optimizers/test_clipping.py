"""Clipping against torch's own."""

import math

import pytest
import torch

from engine.training.optimizers.clipping import clip
from tests.unit.training.optimizers.test_adamw import gradients, parameters


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


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_non_finite_gradient_shows_in_the_norm(bad):
    assert not torch.isfinite(clip([torch.ones(3), torch.tensor([1.0, bad])], 1.0))
