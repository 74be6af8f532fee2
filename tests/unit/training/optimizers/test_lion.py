"""Lion against the paper's formula."""

import pytest
import torch

from tests.support.optimizer_runs import assert_near, doubles, gradients, make, parameters


@pytest.mark.parametrize("whole", [False, True])
def test_it_is_the_papers_formula(whole):
    """Algorithm 2 of arXiv:2302.06675, in float64, with a rate for each group."""
    named = parameters((4, 7), (5,), (3, 2, 3, 3))
    groups = [{name: named[name] for name in names} for names in ("ca", "b")]
    ours = make("lion", groups, whole=whole, beta1=0.9, beta2=0.99, weight_decay=0.1)
    exact = doubles(named)
    momentum = {name: torch.zeros_like(value) for name, value in exact.items()}
    for step in range(20):
        rates = [1e-2 * (step + 1), 1e-3]
        ours.update(gradients(named, step), rates)
        for name, gradient in doubles(gradients(named, step)).items():
            rate = rates[name == "b"]
            direction = torch.sign(0.9 * momentum[name] + 0.1 * gradient)
            exact[name] = exact[name] - rate * (direction + 0.1 * exact[name])
            momentum[name] = 0.99 * momentum[name] + 0.01 * gradient
    assert_near(named, exact, rtol=2e-6, atol=2e-6)
    for name, value in ours.state().slots["exp_avg"].items():
        torch.testing.assert_close(value.double(), momentum[name], rtol=2e-6, atol=2e-7)


def test_one_by_one_has_the_bits_of_all_at_once():
    together, apart = (parameters((4, 7), (5,)) for _ in range(2))
    for step in range(3):
        for named, whole in ((together, False), (apart, True)):
            make("lion", [named], whole=whole).update(gradients(named, step), [0.1])
    assert all(torch.equal(together[name], apart[name]) for name in together)
