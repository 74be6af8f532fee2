"""The learning rate's schedules against those of Diffusers."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from engine.training.optimizers.lr_schedule import schedule_factor

SCHEDULES = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


def rate_of(base, schedule, step, **steps):
    return base * schedule_factor(base, schedule, step, **steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup, most", [(0, 10), (3, 10), (9, 10), (10, 10), (500, 10), (0, 1), (100, 1000)])
@pytest.mark.parametrize("base", [1e-4, 3.7e-3])
def test_every_step_is_diffusers(schedule, warmup, most, base):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=most)
    for step in range(most):
        ours = rate_of(base, schedule, step, warmup_steps=warmup, max_steps=most)
        assert ours == theirs.get_last_lr()[0], step
        if step + 1 < most:  # their polynomial divides by zero at the end when the warm-up is as long as all steps
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_group_has_the_same_factor_as_in_diffusers(schedule):
    """Diffusers multiplies each group's own rate by one factor, which polynomial takes from the first group's."""
    named = {name: torch.nn.Parameter(torch.zeros(1)) for name in "ab"}
    optimizer = torch.optim.SGD([{"params": [named["a"]]}, {"params": [named["b"]], "lr": 3e-5}], lr=1e-3)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=9)
    for step in range(9):
        factor = schedule_factor(1e-3, schedule, step, warmup_steps=2, max_steps=9)
        assert [1e-3 * factor, 3e-5 * factor] == theirs.get_last_lr()
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("base", [1e-7, 3e-8])
def test_a_polynomial_below_its_end_is_held(base):
    rates = [rate_of(base, "polynomial", step, warmup_steps=2, max_steps=6) for step in range(6)]
    assert rates == [0.0, base * 0.5, base, base, base, base]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5, 10, 20])
def test_beyond_the_end_nothing_rises_or_breaks(schedule, warmup):
    rates = [rate_of(1e-3, schedule, step, warmup_steps=warmup, max_steps=10) for step in range(20, 60)]
    assert all(0 <= rate <= 1e-3 for rate in rates)
    if schedule == "polynomial":
        assert rates[-1] == pytest.approx(1e-7)
