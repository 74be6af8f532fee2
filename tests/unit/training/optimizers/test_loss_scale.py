"""The fp16 loss scale against torch's scaler."""

import math
import random

import pytest
import torch

from engine.results.state import LossScale
from engine.training.optimizers import loss_scale


@pytest.mark.parametrize("seed", range(3))
def test_walks_beside_torchs_scaler(seed):
    scaler = torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    ours, random_ = LossScale(), random.Random(seed)
    for _ in range(7000):
        finite = random_.random() > 4e-4
        scaler.scale(torch.ones(1))
        parameter.grad = torch.tensor([1.0 if finite else math.inf])
        scaler.step(optimizer)
        scaler.update()
        ours = loss_scale.updated(ours, finite=finite)
        assert (ours.scale, ours.growth_tracker) == (scaler.get_scale(), scaler._get_growth_tracker())
    assert ours.scale > 65536 / 64


def test_the_scale_stays_finite():
    largest = LossScale(2.0**127, 1999)
    assert loss_scale.updated(largest, finite=True) == LossScale(2.0**127, 0)


def test_collapses_below_one():
    scale = LossScale()
    for _ in range(16):
        scale = loss_scale.updated(scale, finite=False)
        assert not loss_scale.is_collapsed(scale)
    assert scale.scale == 1.0
    assert loss_scale.is_collapsed(loss_scale.updated(scale, finite=False))


@pytest.mark.parametrize("values", [(0.0, 0), (-1.0, 0), (math.nan, 0), (math.inf, 0), (1.0, -1), (1e39, 0)])
def test_nonsense_is_refused(values):
    with pytest.raises(ValueError, match="is out of range"):
        LossScale(*values)
