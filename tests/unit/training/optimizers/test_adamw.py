"""AdamW against torch's own loop."""

import pytest
import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers import adamw


def parameters(seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 7), "b": (5, 4), "c": (3, 2, 3, 3), "d": (9,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for name, shape in shapes.items()}


def gradients(named, step, scale=1.0):
    draw = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(parameter.shape, generator=draw) * scale for parameter in named.values()]


def assert_same_bits(one, other):
    for name in one:
        assert torch.equal(one[name], other[name]), name


def by_name(named, step):
    return dict(zip(named, gradients(named, step), strict=True))


def make(groups, **options):
    return adamw.make(groups, TrainArgs(adam_args=AdamArgs(**options)), is_whole_model=False)


class TestAdamW:
    def test_foreach_has_the_for_loops_bits(self):
        named, reference = parameters(), parameters()
        ours = make([named])
        loop = torch.optim.AdamW(
            reference.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, foreach=False, fused=False
        )
        for step in range(20):
            rate = 1e-3 * (step + 1)
            ours.update(by_name(named, step), [rate])
            for parameter, gradient in zip(reference.values(), gradients(reference, step), strict=True):
                parameter.grad = gradient
            loop.param_groups[0]["lr"] = rate
            loop.step()
        assert_same_bits(named, reference)

    def test_each_group_has_its_own_rate(self):
        """As two optimizers would do it, whatever the order of the parameters."""
        named, references = parameters(), [parameters(), parameters()]
        groups = [{name: named[name] for name in names} for names in ("bd", "ac")]
        ours = make(groups)
        apart = [
            torch.optim.AdamW([own[name] for name in group], lr=0)
            for own, group in zip(references, groups, strict=True)
        ]
        for step in range(5):
            rates = [1e-2 * (step + 1), 1e-3]
            ours.update(by_name(named, step), rates)
            for own, optimizer, rate in zip(references, apart, rates, strict=True):
                for parameter, gradient in zip(own.values(), gradients(own, step), strict=True):
                    parameter.grad = gradient
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
        for own, group in zip(references, groups, strict=True):
            assert_same_bits(group, own)

    def test_takes_the_tasks_arguments(self):
        ours = make([parameters()], beta1=0.5, beta2=0.6, weight_decay=0.7, epsilon=0.8)
        group = ours._optimizer.param_groups[0]
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.5, 0.6), 0.7, 0.8)
        assert group["foreach"] is True and group["fused"] is False

    @pytest.mark.parametrize("rate", [1e308, float("inf")])
    def test_a_rate_beyond_float32_changes_nothing(self, rate):
        named = parameters()
        with pytest.raises(NonFiniteError, match="beyond float32"):
            make([named]).update(by_name(named, 0), [rate])
        assert_same_bits(named, parameters())

    def test_leaves_no_gradient_behind(self):
        named = parameters()
        make([named]).update(by_name(named, 0), [1e-3])
        assert all(parameter.grad is None for parameter in named.values())

    def test_a_negative_mean_square_is_refused(self):
        named = parameters()
        optimizer = make([named])
        saved = optimizer.state()
        saved.slots["exp_avg_sq"]["c"][0] = -1.0
        with pytest.raises(CheckpointError, match="mean square of c is negative"):
            optimizer.restore(saved)
