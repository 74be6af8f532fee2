"""Prodigy against the paper's formula, and that it finds a learning rate."""

import math

import pytest
import torch

from engine.core.errors import CheckpointError
from engine.results.state import OptimizerState
from tests.support.optimizer_runs import assert_near, doubles, gradients, make, parameters


def slope(value, step):
    """A gradient that points away from 2 in each coordinate, with noise."""
    draw = torch.Generator().manual_seed(step)
    return (value - 2) + 0.01 * torch.randn(value.shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("whole", [False, True])
def test_it_is_the_papers_formula(whole):
    """Algorithm 4 of arXiv:2306.06101 in float64, with decoupled weight decay, bias correction and safeguard.

    The second group has twice the rate. It changes its steps, not the estimate's formula.
    """
    named = parameters((4, 7), (5,), (3, 2, 3, 3))
    for parameter in named.values():
        parameter.data *= 1e-3  # so that the first steps, of a millionth, are exact
    groups = [{name: named[name] for name in names} for names in ("ca", "b")]
    ours = make("prodigy", groups, whole=whole, weight_decay=0.01)
    exact = doubles(named)
    start = {name: value.clone() for name, value in exact.items()}
    mean, square, s = ({name: torch.zeros_like(value) for name, value in exact.items()} for _ in range(3))
    d, r, found = 1e-6, 0.0, []
    for step in range(100):
        rate = 1.0 - step / 200
        own = {name: slope(parameter.detach().double(), step) for name, parameter in named.items()}
        ours.update({name: gradient.float() for name, gradient in own.items()}, [rate, 2 * rate])
        corrected = rate * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        r *= math.sqrt(0.999)
        for name, value in exact.items():
            gradient = own[name].float().double()
            r += (1 - math.sqrt(0.999)) * corrected * d**2 * float((gradient * (start[name] - value)).sum())
            s[name] = math.sqrt(0.999) * s[name] + (1 - math.sqrt(0.999)) * d**2 * gradient
            mean[name] = 0.9 * mean[name] + 0.1 * d * gradient
            square[name] = 0.999 * square[name] + 0.001 * d**2 * gradient**2
            factor = corrected * d * (2 if name == "b" else 1)
            exact[name] = value - factor * (mean[name] / (square[name].sqrt() + d * 1e-8) + 0.01 * value)
        d = max(d, r / float(sum(value.abs().sum() for value in s.values())))
        found.append(d)
    assert found[-1] > 1e4 * found[0] and len(set(found)) > 10
    assert ours.state().numbers["d"] == pytest.approx(d, rel=1e-3)
    assert_near(named, exact, rtol=1e-3, atol=1e-4)


def test_a_gradient_that_is_missing_counts_as_zeros_for_the_estimate():
    with_zeros, without = parameters((4, 7), (5,)), parameters((4, 7), (5,))
    one, other = make("prodigy", [with_zeros]), make("prodigy", [without])
    for step in range(6):
        own = gradients(without, step)
        other.update(own if step % 2 else {"a": own["a"]}, [1e3])
        one.update(own if step % 2 else {"a": own["a"], "b": torch.zeros(5)}, [1e3])
        # The parameter itself keeps its mean gradient meanwhile, so that only the first step is the same.
        if step == 0:
            assert one.state().numbers == other.state().numbers
            assert torch.equal(one.state().slots["s"]["b"], other.state().slots["s"]["b"])
    assert other.state().numbers["d"] > 1e-6


def test_a_rate_of_zero_leaves_the_estimate():
    """The first step of a warm-up."""
    named = parameters((4, 7))
    before = doubles(named)
    ours = make("prodigy", [named])
    ours.update(gradients(named, 0), [0.0])
    assert ours.state().numbers == {"d": 1e-6, "r": 0.0}
    assert_near(named, before, rtol=0, atol=0)


def test_it_finds_the_way():
    """A quadratic in 100 dimensions, from 1000 away: with AdamW and the same rate, 1 a step is what it can go."""
    goal = torch.linspace(-1000, 1000, 100)
    named = {"a": torch.nn.Parameter(torch.zeros(100))}
    ours = make("prodigy", [named], weight_decay=0.0)
    for _ in range(400):
        ours.update({"a": (named["a"].detach() - goal) / 100}, [1.0])
    assert (named["a"] - goal).abs().mean() < 50
    assert 50 < ours.state().numbers["d"] < 1000


@pytest.mark.parametrize(
    "numbers, words",
    [({"d": -1.0}, "estimate d of -1 is too small"), ({"d": 0.0}, "estimate d of 0 is too small")],
)
def test_an_estimate_that_no_update_makes_is_refused(numbers, words):
    ours = make("prodigy", [parameters((4, 7))])
    state = ours.state()
    with pytest.raises(CheckpointError, match=words):
        ours.restore(OptimizerState(state.slots, 0, {**state.numbers, **numbers}))


def test_a_negative_mean_square_is_refused():
    ours = make("prodigy", [parameters((4, 7))])
    state = ours.state()
    state.slots["exp_avg_sq"]["a"][0] = -1.0
    with pytest.raises(CheckpointError, match="mean square of a is negative"):
        ours.restore(state)
