"""Masks that depend on the seed, the layer and the micro-batch, and on nothing else."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from engine.core import rng
from engine.training.methods.lora.dropout import AddressedDropout, Dropping

SHAPE = (3, 7, 40)


def layer(probability=0.3, *, seed=5, name="unet.to_q", dropping=None):
    return AddressedDropout(probability, seed=seed, layer=name, dropping=dropping or Dropping())


def mask(dropout, address, shape=SHAPE):
    with dropout._dropping.at(address):
        return dropout(torch.ones(shape)) != 0


def test_outside_of_a_micro_batch_nothing_is_dropped():
    dropout, x = layer(), torch.randn(SHAPE)
    assert dropout(x) is x
    mask(dropout, 3)
    with pytest.raises(ZeroDivisionError), dropout._dropping.at(3):
        raise ZeroDivisionError
    assert dropout(x) is x


def test_a_mask_is_the_same_however_often_and_whenever_it_is_drawn():
    first = mask(layer(), 12)
    other = layer()
    mask(other, 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(mask(other, 12), first) and torch.equal(mask(other, 12), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_layer_and_micro_batch_matter():
    masks = [mask(layer(), 12), mask(layer(seed=6), 12), mask(layer(name="unet.to_k"), 12), mask(layer(), 13)]
    assert len({found.numpy().tobytes() for found in masks}) == 4


def test_samples_of_a_batch_and_their_values_have_masks_of_their_own():
    found = mask(layer(0.5), 0, (4, 64))
    assert len({row.numpy().tobytes() for row in found}) == 4
    assert len({column.numpy().tobytes() for column in mask(layer(0.5), 0, (64, 4)).T.contiguous()}) == 4


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_the_probability_and_the_mean_stays(probability):
    dropout = layer(probability)
    with dropout._dropping.at(1):
        found = dropout(torch.ones(400_000, dtype=torch.float64))
    # Four standard deviations of a binomial distribution.
    spread = 4 * (probability * (1 - probability) / len(found)) ** 0.5
    assert (found == 0).double().mean().item() == pytest.approx(probability, abs=spread + 1 / 65536)
    assert found.mean().item() == pytest.approx(1, abs=spread / (1 - probability))
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-3)


@pytest.mark.parametrize("probability, dropped", [(1e-9, 1), (0.5, 32768), (0.999999, 65535)])
def test_no_probability_is_rounded_to_nothing_or_all(probability, dropped):
    assert layer(probability).dropped == dropped


def test_what_is_kept_is_divided_by_the_share_that_is_kept():
    dropout, x = layer(0.25), torch.randn(SHAPE)
    kept = torch.from_numpy(rng.lanes(5, "lora dropout/unet.to_q", 9, SHAPE) >= 16384)
    with dropout._dropping.at(9):
        assert torch.equal(dropout(x), torch.where(kept, x, 0) * (1 / 0.75))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_pass_where_values_do(dtype):
    dropout, x = layer(0.5), torch.ones(SHAPE, dtype=dtype, requires_grad=True)
    with dropout._dropping.at(2):
        found = dropout(x)
        found.sum().backward()
    assert found.dtype == dtype and torch.equal(x.grad, found.detach())


def test_what_is_computed_again_for_its_gradients_has_the_same_mask():
    """Gradient checkpointing runs the forward pass twice."""
    weight, x = torch.nn.Parameter(torch.randn(40, 40)), torch.randn(SHAPE)
    gradients = []
    for again in (False, True):
        dropout = layer(0.5)

        def forward(x, dropout=dropout):
            return dropout(x) @ weight

        with dropout._dropping.at(4):
            result = checkpoint(forward, x, use_reentrant=False) if again else forward(x)
            gradients += torch.autograd.grad(result.square().sum(), [weight])
    assert torch.equal(*gradients)
