"""Which timesteps are drawn, and how often."""

import math

import numpy as np
import pytest

from engine.core import rng
from engine.core.errors import TaskError
from engine.task.plan import timestep_density
from engine.task.plan.timesteps import Timesteps
from engine.task.plan.visits import VisitStream
from engine.task.task import TimestepBias, TrainArgs


class TestTimesteps:
    def drawn(self, args, count=20_000, total=1000):
        source = VisitStream(
            seed=3, num_rows=7, random_flip=False, num_train_timesteps=total, timesteps=Timesteps.of(args, total)
        )
        return [visit.timestep for visit in source.visits(0, count)]

    def test_by_default_all_are_drawn_as_ever(self):
        expected = rng.below(rng.words(3, "timestep", 0, 500)[:, 0], 1000).tolist()
        assert self.drawn(TrainArgs(), 500) == expected
        assert Timesteps.of(TrainArgs(), 1000) == Timesteps(0, 1000)

    def test_a_range(self):
        found = self.drawn(TrainArgs(min_timestep=990, max_timestep=993))
        assert {990, 991, 992} == set(found)
        assert all(6300 < found.count(step) < 7000 for step in set(found))

    # Diffusers' weights: the biased ones times the multiplier, the others 1, all divided by their sum
    @pytest.mark.parametrize(
        "bias, biased",
        [
            ({"strategy": "earlier"}, range(250)),
            ({"strategy": "later"}, range(750, 1000)),
            ({"strategy": "later", "portion": 0.1}, range(900, 1000)),
            ({"strategy": "range", "begin": 200, "end": 500}, range(200, 500)),
            ({"strategy": "range", "begin": 900, "end": 5000}, range(900, 1000)),
        ],
    )
    @pytest.mark.parametrize("multiplier", [3.0, 0.25])
    def test_the_biased_ones_are_drawn_that_many_times_as_often(self, bias, biased, multiplier):
        found = self.drawn(TrainArgs(timestep_bias=TimestepBias(multiplier=multiplier, **bias)))
        share = multiplier * len(biased) / (multiplier * len(biased) + 1000 - len(biased))
        number = sum(step in biased for step in found)
        spread = math.sqrt(20_000 * share * (1 - share))
        assert abs(number - 20_000 * share) < 4 * spread
        assert min(found) >= 0 and max(found) <= 999

    def test_a_bias_of_one_draws_nearly_all_alike(self):
        found = self.drawn(TrainArgs(timestep_bias=TimestepBias(strategy="earlier")), total=4)
        assert all(4800 < found.count(step) < 5200 for step in range(4))

    def test_the_extreme_words_give_the_first_and_the_last(self):
        words = rng.np.array([0, 2**64 - 1], dtype="u8")
        for steps in (Timesteps(5, 9), Timesteps(5, 9, (0.1, 0.7, 1e-9, 1e-9))):
            assert steps.draw(words).tolist() == [5, 8]

    def test_range_and_bias_together(self):
        args = TrainArgs(min_timestep=100, max_timestep=200, timestep_bias=TimestepBias(strategy="range", end=150))
        steps = Timesteps.of(args, 1000)
        assert (steps.begin, steps.end, len(steps.weights)) == (100, 200, 100)

    @pytest.mark.parametrize("sampling", ["logit_normal", "mode"])
    def test_of_flow_matching_are_drawn_by_their_probabilities(self, sampling):
        args = TrainArgs(timestep_sampling=sampling, logit_mean=0.5, logit_std=0.7, mode_scale=0.9)
        found = np.bincount(self.drawn(args, total=20), minlength=20)
        density = {
            "logit_normal": timestep_density.logit_normal(20, 0.5, 0.7),
            "mode": timestep_density.mode(20, 0.9),
        }[sampling]
        assert np.abs(found - 20_000 * np.array(density)).max() < 4 * math.sqrt(20_000 * max(density))

    def test_uniform_sampling_draws_the_same_as_none(self):
        assert Timesteps.of(TrainArgs(timestep_sampling="uniform"), 1000) == Timesteps(0, 1000)

    def test_a_range_and_a_bias_change_the_weights_of_a_sampling(self):
        plain = Timesteps.of(TrainArgs(timestep_sampling="logit_normal"), 1000)
        bias = TimestepBias(strategy="range", begin=150, end=180, multiplier=3.0)
        args = TrainArgs(timestep_sampling="logit_normal", min_timestep=100, max_timestep=200, timestep_bias=bias)
        found = Timesteps.of(args, 1000)
        assert (found.begin, found.end) == (100, 200)
        own = np.array(found.weights)
        own[50:80] /= 3
        assert np.allclose(own, plain.weights[100:200], rtol=1e-15)

    def test_timesteps_with_the_weight_0_are_never_drawn(self):
        args = TrainArgs(timestep_sampling="logit_normal", logit_mean=0.0, logit_std=0.01)
        found = Timesteps.of(args, 1000)
        assert found.weights[0] == 0 == found.weights[-1]
        assert all(found.weights[step] > 0 for step in self.drawn(args))

    @pytest.mark.parametrize(
        "args, message",
        [
            ({"min_timestep": 500, "max_timestep": 500}, "min_timestep is 500 and max_timestep is 500: expected"),
            ({"max_timestep": 1001}, "<= 1000, the model"),
            ({"min_timestep": 1000}, "min_timestep is 1000 and max_timestep is 1000: expected"),
            ({"timestep_bias": TimestepBias(strategy="range", begin=7, end=7)}, "timestep_bias: none .* from 7"),
            ({"timestep_bias": TimestepBias(strategy="range", begin=1000, end=1001)}, "timestep_bias: none"),
            ({"max_timestep": 750, "timestep_bias": TimestepBias(strategy="later")}, "from 750 to below 1000"),
            ({"timestep_bias": TimestepBias(strategy="earlier", portion=0.0001)}, "from 0 to below 0"),
            (
                {"timestep_sampling": "logit_normal", "logit_std": 0.01, "max_timestep": 100},
                "timestep_sampling logit_normal: none of the timesteps from 0 to below 100 is ever drawn",
            ),
        ],
    )
    def test_nothing_to_train_is_a_task_error(self, args, message):
        with pytest.raises(TaskError, match=message):
            Timesteps.of(TrainArgs(**args), 1000)
