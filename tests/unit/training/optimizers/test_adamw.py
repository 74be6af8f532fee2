"""AdamW against torch's own loop."""

import pytest
import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers import adamw, clipping
from tests.support.fake_memory import LiveBytes


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


def make(groups, *, whole=False, **options):
    return adamw.make(groups, TrainArgs(adam_args=AdamArgs(**options)), is_whole_model=whole, total=None)


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


class TestWholeModel:
    """torch's fused implementation."""

    def test_it_is_the_papers_formula(self):
        """Algorithm 2 of arXiv:1711.05101 with a decay of rate x weight_decay, in float64."""
        named = parameters()
        ours = make([named], whole=True, weight_decay=0.1)
        exact = {name: parameter.detach().double() for name, parameter in named.items()}
        first, second = ({name: torch.zeros_like(value) for name, value in exact.items()} for _ in range(2))
        for step in range(20):
            rate, number = 1e-3 * (step + 1), step + 1
            ours.update(by_name(named, step), [rate])
            for name, drawn in by_name(named, step).items():
                gradient = drawn.double()
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                exact[name] *= 1 - rate * 0.1
                root = (second[name] / (1 - 0.999**number)).sqrt() + 1e-8
                exact[name] -= rate * first[name] / (1 - 0.9**number) / root
        for name, parameter in named.items():
            torch.testing.assert_close(parameter.detach().double(), exact[name], rtol=2e-6, atol=2e-7)

    @pytest.mark.parametrize("size", [1, 15, 33, 1_000_003])
    def test_the_number_of_threads_is_no_part_of_the_bits(self, size):
        """It hands each thread whole lines of the cache, so that only a tensor's end is computed value by value."""
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                named = {"a": torch.nn.Parameter(torch.linspace(-1, 1, size))}
                ours = make([named], whole=True)
                for step in range(3):
                    ours.update({"a": torch.linspace(-2, 1 + step, size)}, [1e-2])
                found.append(named["a"].detach())
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], one) for one in found)

    def test_its_step_counter_is_where_torch_has_it(self):
        named = parameters()
        ours, own = make([named], whole=True), make([parameters()], whole=True)
        ours.update(by_name(named, 0), [1e-3])
        own.restore(ours.state())
        (theirs, *_), (mine, *_) = ([state["step"] for state in one._optimizer.state.values()] for one in (ours, own))
        assert (mine.dtype, mine.device, mine.shape, mine) == (theirs.dtype, theirs.device, theirs.shape, theirs)

    def test_an_update_needs_no_copy(self):
        """Parameters, gradients and moments are all that it takes, but for a page or two."""
        size = 1 << 20
        named = {name: torch.nn.Parameter(torch.zeros(size)) for name in "abcd"}
        ours = make([named], whole=True)
        for step in range(2):
            gradients = {name: torch.ones(size) for name in named}
            known = [*named.values(), *gradients.values()]
            known += [tensor for state in ours._optimizer.state.values() for tensor in state.values()]
            with LiveBytes(known) as memory:
                clipping.scale(list(gradients.values()), 0.5)
                ours.update(gradients, [1e-3])
            assert memory.peak <= (2 * 4 * 4 * size if step == 0 else 0) + 4096
