"""The learning rate against Diffusers' schedules, the loss scale against torch's scaler, resuming bit for bit."""

import math
import random

import pytest
import torch
from diffusers.optimization import get_scheduler

from engine.core.errors import CheckpointError, NonFiniteError
from engine.task.task import AdamArgs
from engine.training import optim
from engine.training.optim import LossScale, Moments, learning_rate

SCHEDULES = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
ADAM = AdamArgs()


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


class TestLearningRate:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("warmup, most", [(0, 10), (3, 10), (9, 10), (10, 10), (500, 10), (0, 1), (100, 1000)])
    @pytest.mark.parametrize("base", [1e-4, 3.7e-3])
    def test_every_step_is_diffusers(self, schedule, warmup, most, base):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
        theirs = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=most)
        for step in range(most):
            ours = learning_rate(base, schedule, step, warmup_steps=warmup, max_steps=most)
            assert ours == theirs.get_last_lr()[0], step
            if step + 1 < most:  # their polynomial divides by zero at the end when the warm-up is as long as all steps
                optimizer.step()
                theirs.step()

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_another_group_has_the_same_factor_as_in_diffusers(self, schedule):
        """Diffusers multiplies each group's own rate by one factor, which polynomial takes from the first group's."""
        named = parameters()
        optimizer = torch.optim.SGD([{"params": [named["a"]]}, {"params": [named["b"]], "lr": 3e-5}], lr=1e-3)
        theirs = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=9)
        for step in range(9):
            factor = optim.schedule_factor(1e-3, schedule, step, warmup_steps=2, max_steps=9)
            assert [1e-3 * factor, 3e-5 * factor] == theirs.get_last_lr()
            optimizer.step()
            theirs.step()

    @pytest.mark.parametrize("base", [1e-7, 3e-8])
    def test_a_polynomial_below_its_end_is_held(self, base):
        rates = [learning_rate(base, "polynomial", step, warmup_steps=2, max_steps=6) for step in range(6)]
        assert rates == [0.0, base * 0.5, base, base, base, base]

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("warmup", [0, 5, 10, 20])
    def test_beyond_the_end_nothing_rises_or_breaks(self, schedule, warmup):
        rates = [learning_rate(1e-3, schedule, step, warmup_steps=warmup, max_steps=10) for step in range(20, 60)]
        assert all(0 <= rate <= 1e-3 for rate in rates)
        if schedule == "polynomial":
            assert rates[-1] == pytest.approx(1e-7)


class TestAdamW:
    def test_foreach_has_the_for_loops_bits(self):
        named, reference = parameters(), parameters()
        ours = optim.make_optimizer([named], ADAM)
        loop = torch.optim.AdamW(
            reference.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, foreach=False, fused=False
        )
        for step in range(20):
            rate = 1e-3 * (step + 1)
            optim.update(ours, named, gradients(named, step), [rate])
            for parameter, gradient in zip(reference.values(), gradients(reference, step), strict=True):
                parameter.grad = gradient
            loop.param_groups[0]["lr"] = rate
            loop.step()
        assert_same_bits(named, reference)

    def test_each_group_has_its_own_rate(self):
        """As two optimizers would do it, whatever the order of the parameters."""
        named, references = parameters(), [parameters(), parameters()]
        groups = [{name: named[name] for name in names} for names in ("bd", "ac")]
        ours = optim.make_optimizer(groups, ADAM)
        apart = [
            torch.optim.AdamW([own[name] for name in group], lr=0)
            for own, group in zip(references, groups, strict=True)
        ]
        for step in range(5):
            rates = [1e-2 * (step + 1), 1e-3]
            optim.update(ours, named, gradients(named, step), rates)
            for own, optimizer, rate in zip(references, apart, rates, strict=True):
                for parameter, gradient in zip(own.values(), gradients(own, step), strict=True):
                    parameter.grad = gradient
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
        for own, group in zip(references, groups, strict=True):
            assert_same_bits(group, own)

    def test_takes_the_tasks_arguments(self):
        optimizer = optim.make_optimizer([parameters()], AdamArgs(beta1=0.5, beta2=0.6, weight_decay=0.7, epsilon=0.8))
        group = optimizer.param_groups[0]
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.5, 0.6), 0.7, 0.8)
        assert group["foreach"] is True and group["fused"] is False

    @pytest.mark.parametrize("rate", [1e308, float("inf")])
    def test_a_rate_beyond_float32_changes_nothing(self, rate):
        named = parameters()
        with pytest.raises(NonFiniteError, match="beyond float32"):
            optim.update(optim.make_optimizer([named], ADAM), named, gradients(named, 0), [rate])
        assert_same_bits(named, parameters())

    def test_leaves_no_gradient_behind(self):
        named = parameters()
        optim.update(optim.make_optimizer([named], ADAM), named, gradients(named, 0), [1e-3])
        assert all(parameter.grad is None for parameter in named.values())

    @pytest.mark.parametrize("cut", [0, 1, 4, 10])
    @pytest.mark.parametrize("first", [0, 3], ids=["", "the first three steps skipped"])
    def test_cut_and_continued_has_the_same_bits(self, cut, first):
        def train(named, optimizer, start, stop):
            for step in range(max(start, first), stop):
                optim.update(optimizer, named, gradients(named, step), [1e-3 / (step + 1)])

        whole = parameters()
        uninterrupted = optim.make_optimizer([whole], ADAM)
        train(whole, uninterrupted, 0, 10)

        before = parameters()
        optimizer = optim.make_optimizer([before], ADAM)
        train(before, optimizer, 0, cut)
        saved = optim.optimizer_state(optimizer, before)
        assert saved.step == max(0, cut - first)
        after = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in before.items()}
        continued = optim.make_optimizer([after], ADAM)
        optim.restore_optimizer(continued, after, saved)
        train(after, continued, cut, 10)

        assert_same_bits(after, whole)
        one, other = optim.optimizer_state(continued, after), optim.optimizer_state(uninterrupted, whole)
        assert one.step == other.step
        assert_same_bits(one.exp_avg, other.exp_avg)
        assert_same_bits(one.exp_avg_sq, other.exp_avg_sq)

    def test_no_state_yet_is_zeros(self):
        named = parameters()
        moments = optim.optimizer_state(optim.make_optimizer([named], ADAM), named)
        assert moments.step == 0
        for kind in (moments.exp_avg, moments.exp_avg_sq):
            assert kind.keys() == named.keys()
            assert all(torch.equal(kind[name], torch.zeros(named[name].shape)) for name in named)

    def test_state_and_optimizer_share_no_memory(self):
        named = parameters()
        optimizer = optim.make_optimizer([named], ADAM)
        optim.update(optimizer, named, gradients(named, 0), [1e-3])
        saved = optim.optimizer_state(optimizer, named)
        copy = saved.exp_avg["a"].clone()
        optim.restore_optimizer(optimizer, named, saved)
        optim.update(optimizer, named, gradients(named, 1), [1e-3])
        assert torch.equal(saved.exp_avg["a"], copy)

    @pytest.mark.parametrize("change", ["missing", "more", "shape"])
    def test_foreign_state_is_refused_by_name(self, change):
        named = parameters()
        optimizer = optim.make_optimizer([named], ADAM)
        saved = optim.optimizer_state(optimizer, named)
        exp_avg_sq = dict(saved.exp_avg_sq)
        tensor = exp_avg_sq.pop("c")
        if change == "more":
            exp_avg_sq |= {"c": tensor, "bb": tensor}
        elif change == "shape":
            exp_avg_sq["c"] = tensor[:1]
        with pytest.raises(CheckpointError, match="exp_avg_sq.* bb" if change == "more" else r"exp_avg_sq.* c$"):
            optim.restore_optimizer(optimizer, named, Moments(saved.exp_avg, exp_avg_sq, saved.step))


class TestClip:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
    @pytest.mark.parametrize("max_norm", [0.5, 1.0])
    def test_is_torchs_own(self, scale, max_norm):
        named = parameters()
        for parameter, gradient in zip(named.values(), gradients(named, 0, scale), strict=True):
            parameter.grad = gradient
        ours = gradients(named, 0, scale)
        norm = optim.clip(ours, max_norm)
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(named.values(), max_norm))
        for gradient, parameter in zip(ours, named.values(), strict=True):
            assert torch.equal(gradient, parameter.grad)

    def test_zero_switches_it_off_but_still_measures(self):
        ours = [torch.tensor([3.0]), torch.tensor([[4.0]])]
        assert optim.clip(ours, 0) == 5.0
        assert ours == [torch.tensor([3.0]), torch.tensor([[4.0]])]

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    def test_a_non_finite_gradient_shows_in_the_norm(self, bad):
        assert not torch.isfinite(optim.clip([torch.ones(3), torch.tensor([1.0, bad])], 1.0))


class TestLossScale:
    @pytest.mark.parametrize("seed", range(3))
    def test_walks_beside_torchs_scaler(self, seed):
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
            ours = ours.updated(finite)
            assert (ours.scale, ours.growth_tracker) == (scaler.get_scale(), scaler._get_growth_tracker())
        assert ours.scale > 65536 / 64

    def test_the_scale_stays_finite(self):
        largest = LossScale(2.0**127, 1999)
        assert largest.updated(True) == LossScale(2.0**127, 0)

    def test_collapses_below_one(self):
        scale = LossScale()
        for _ in range(16):
            scale = scale.updated(False)
            assert not scale.collapsed
        assert scale.scale == 1.0
        assert scale.updated(False).collapsed

    @pytest.mark.parametrize("values", [(0.0, 0), (-1.0, 0), (math.nan, 0), (math.inf, 0), (1.0, -1), (1e39, 0)])
    def test_nonsense_is_refused(self, values):
        with pytest.raises(ValueError, match="no loss scale"):
            LossScale(*values)
