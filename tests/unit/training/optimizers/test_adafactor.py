"""Adafactor against the paper's formula, and against the implementation in transformers."""

import pytest
import torch
from transformers.optimization import Adafactor

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState
from tests.support.optimizer_runs import assert_near, doubles, gradients, make, parameters

SHAPES = ((4, 7), (5,), (6, 2, 3, 3), (), (8, 1))


def test_it_is_the_papers_formula():
    """Algorithms 4 and 5 of arXiv:1804.04235 in float64: a convolution is the matrix by which it multiplies."""
    named = parameters(*SHAPES)
    ours = make("adafactor", [named], weight_decay=0.1)
    exact, squares = doubles(named), {}
    for step in range(1, 21):
        rate, decay = 1e-3 * step, 1 - step**-0.8
        ours.update(gradients(named, step), [rate])
        for name, gradient in doubles(gradients(named, step)).items():
            square = gradient**2 + 1e-30
            square = square.flatten(1) if square.ndim >= 2 else square
            squares[name] = decay * squares.get(name, 0.0) + (1 - decay) * square
            mean = squares[name]
            if mean.ndim == 2:  # of which only the sums of rows and columns count
                mean = mean.sum(1, keepdim=True) * mean.sum(0, keepdim=True) / mean.sum()
            update = gradient / mean.view(gradient.shape).sqrt()
            update = update / max(1.0, update.square().mean().sqrt())
            exact[name] = exact[name] - rate * (update + 0.1 * exact[name])
    assert_near(named, exact, rtol=5e-6, atol=2e-6)


def test_it_is_that_of_transformers():
    """On matrices and vectors; it factors the last two dimensions of convolutions."""
    named, reference = parameters((4, 7), (5,)), parameters((4, 7), (5,))
    ours = make("adafactor", [named], weight_decay=0.01)
    theirs = Adafactor(reference.values(), lr=1e-3, relative_step=False, scale_parameter=False, weight_decay=0.01)
    for step in range(10):
        ours.update(gradients(named, step), [1e-3])
        for name, gradient in gradients(reference, step).items():
            reference[name].grad = gradient
        theirs.step()
    assert_near(named, doubles(reference), rtol=1e-6, atol=1e-6)


def test_no_gradient_at_all_changes_nothing_but_the_decay():
    """As the first matrix of a LoRA, whose second one is zero in the beginning."""
    named = parameters((4, 7), (5,))
    before = doubles(named)
    ours = make("adafactor", [named], weight_decay=0.1)
    ours.update({name: torch.zeros_like(parameter) for name, parameter in named.items()}, [0.5])
    assert_near(named, {name: 0.95 * value for name, value in before.items()})


@pytest.mark.parametrize("slot, name", [("exp_avg_sq", "b"), ("exp_avg_sq_row", "a"), ("exp_avg_sq_column", "a")])
def test_a_negative_mean_square_is_refused(slot, name):
    ours = make("adafactor", [parameters((4, 7), (5,))])
    state = ours.state()
    slots = {key: {own: tensor.clone() for own, tensor in tensors.items()} for key, tensors in state.slots.items()}
    slots[slot][name][0] = -1.0
    with pytest.raises(CheckpointError, match=f"mean square of {name} is negative"):
        ours.restore(OptimizerState(slots, 0))
