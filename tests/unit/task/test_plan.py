"""Step arithmetic and the stream of visits."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import rng
from engine.core.errors import TaskError
from engine.task import plan
from engine.task.plan import VisitStream
from engine.task.task import TimestepBias, TrainArgs, Validation


def make(num_rows=10, processes=1, start_step=0, **args):
    return plan.schedule(TrainArgs(**args), num_rows=num_rows, processes=processes, start_step=start_step)


def stream(seed=0, num_rows=7, random_flip=True, num_train_timesteps=1000):
    return VisitStream(seed=seed, num_rows=num_rows, random_flip=random_flip, num_train_timesteps=num_train_timesteps)


class TestSchedule:
    @pytest.mark.parametrize(
        "rows, batch, accumulation, processes, steps",
        [
            (10, 5, 1, 1, 2),
            (11, 5, 1, 1, 3),
            (1, 16, 1, 1, 1),
            (16, 16, 1, 1, 1),
            (17, 2, 4, 1, 3),
            (17, 2, 2, 2, 3),
            (24, 2, 4, 1, 3),
            (10**6, 1, 1, 1, 10**6),
        ],
    )
    def test_an_epoch_is_the_rows_over_the_effective_batch_rounded_up(
        self, rows, batch, accumulation, processes, steps
    ):
        found = make(rows, processes, batch_size=batch, gradient_accumulation_steps=accumulation)
        assert found.steps_per_epoch == steps == found.stop_step == found.max_steps
        assert found.micro_batches == processes * accumulation
        assert found.visits_per_step == batch * accumulation * processes

    @pytest.mark.parametrize(
        "start, args, stop, max_steps, finishes",
        [
            (0, {"num_train_steps": 3, "max_train_steps": 10}, 3, 10, False),
            (3, {"num_train_steps": 3, "max_train_steps": 10}, 6, 10, False),
            (9, {"num_train_steps": 3, "max_train_steps": 10}, 10, 10, True),
            (7, {"num_train_steps": 3, "max_train_steps": 10}, 10, 10, True),
            (10, {"num_train_steps": 3, "max_train_steps": 10}, 10, 10, True),
            (25, {"num_train_steps": 3, "max_train_steps": 10}, 25, 10, True),
            (0, {"num_train_steps": 100, "max_train_steps": 10}, 10, 10, True),
            # ten rows in batches of two: five steps an epoch
            (0, {"num_train_epochs": 2, "max_train_epochs": 3}, 10, 15, False),
            (5, {"num_train_epochs": 2, "max_train_epochs": 3}, 15, 15, True),
            # steps win over epochs
            (0, {"num_train_epochs": 2, "num_train_steps": 1, "max_train_epochs": 3}, 1, 15, False),
            (0, {"num_train_epochs": 9, "max_train_epochs": 3, "max_train_steps": 4}, 4, 4, True),
        ],
    )
    def test_the_slice(self, start, args, stop, max_steps, finishes):
        found = make(10, start_step=start, batch_size=2, **args)
        assert (found.start_step, found.stop_step, found.max_steps) == (start, stop, max_steps)
        assert found.num_steps == stop - start
        assert found.finishes is finishes

    @given(max_steps=st.integers(1, 60), cuts=st.lists(st.integers(1, 20), min_size=1, max_size=8))
    @settings(max_examples=100, deadline=None)
    def test_a_chain_trains_exactly_the_steps_asked_for_and_finishes_once(self, max_steps, cuts):
        step, trained = 0, 0
        for num in (*cuts, max_steps):
            found = make(start_step=step, num_train_steps=num, max_train_steps=max_steps)
            assert found.num_steps == min(num, max_steps - step)
            assert found.finishes == (found.stop_step == max_steps)
            trained += found.num_steps
            step = found.stop_step
        assert trained == step == max_steps

    @pytest.mark.parametrize(
        "args",
        [
            {"num_train_steps": 2**63, "max_train_steps": 2**63, "batch_size": 1},
            {"num_train_steps": 10**40, "max_train_steps": 10**40},
            {"batch_size": 10**30},
            {"gradient_accumulation_steps": 10**30},
            {"num_train_epochs": 10**4200, "max_train_epochs": 10**4200},
        ],
    )
    def test_more_than_can_be_counted_is_refused(self, args):
        with pytest.raises(TaskError, match="too many to count") as caught:
            make(**args)
        assert caught.value.code == 2

    def test_refusing_a_number_does_not_depend_on_being_able_to_print_it(self):
        """A product of two readable numbers may have more digits than Python converts to text."""
        with pytest.raises(TaskError, match="too many to count"):
            make(10**6, batch_size=1, num_train_epochs=10**4299, max_train_epochs=10**4299)

    def test_the_last_countable_visit_is_allowed(self):
        found = make(batch_size=1, num_train_steps=plan.MAX_VISITS, max_train_steps=plan.MAX_VISITS)
        last = plan.MAX_VISITS - 1
        visit = next(stream(num_rows=7).visits(last, 1))
        assert found.stop_step == plan.MAX_VISITS and visit.number == last and visit.epoch == last // 7

    def test_the_base_rate(self):
        args = TrainArgs(learning_rate=0.5, batch_size=3, scale_lr=True)
        assert plan.base_learning_rate(args, 4) == 6.0
        assert plan.base_learning_rate(dataclasses.replace(args, scale_lr=False), 4) == 0.5
        assert plan.base_text_encoder_rate(args, 4) == 6.0
        own = dataclasses.replace(args, text_encoder_learning_rate=0.25)
        assert plan.base_text_encoder_rate(own, 4) == 3.0 and plan.base_learning_rate(own, 4) == 6.0
        assert plan.base_text_encoder_rate(dataclasses.replace(own, scale_lr=False), 4) == 0.25


class TestValidationInterval:
    @pytest.mark.parametrize(
        "validation, steps",
        [
            ({}, None),
            ({"every_n_steps": 7}, 7),
            ({"every_n_epochs": 1}, 5),
            ({"every_n_epochs": 3}, 15),
            ({"every_n_steps": 7, "every_n_epochs": 3}, 7),  # steps win over epochs
        ],
    )
    def test_is_in_steps(self, validation, steps):
        # ten rows in batches of two: five steps an epoch
        assert plan.validation_interval(Validation(**validation), make(batch_size=2)) == steps

    def test_does_not_depend_on_where_a_chain_is_cut(self):
        cut = make(batch_size=2, start_step=7, num_train_steps=4, max_train_steps=100)
        assert plan.validation_interval(Validation(every_n_epochs=2), cut) == 10


class TestVisits:
    @given(
        seed=st.integers(0, 10**30),
        num_rows=st.integers(1, 12),
        cuts=st.lists(st.integers(0, 15), min_size=1, max_size=6),
    )
    @settings(max_examples=60, deadline=None)
    def test_cut_anywhere_it_is_the_same_stream(self, seed, num_rows, cuts):
        whole = list(stream(seed, num_rows).visits(0, sum(cuts)))
        start, pieces = 0, []
        for count in cuts:
            pieces += stream(seed, num_rows).visits(start, count)  # a new process each time
            start += count
        assert pieces == whole
        assert [visit.number for visit in whole] == list(range(len(whole)))

    def test_access_is_random(self):
        one = stream()
        whole = list(one.visits(0, 50))
        for start in (40, 3, 49, 0, 21):
            assert next(one.visits(start, 1)) == whole[start]

    @pytest.mark.parametrize("num_rows", [1, 2, 7, 40])
    def test_every_epoch_visits_every_sample_once(self, num_rows):
        visits = list(stream(num_rows=num_rows).visits(0, 5 * num_rows))
        orders = []
        for epoch in range(5):
            own = visits[epoch * num_rows : (epoch + 1) * num_rows]
            assert {visit.epoch for visit in own} == {epoch}
            assert [visit.position for visit in own] == list(range(num_rows))
            assert sorted(visit.sample for visit in own) == list(range(num_rows))
            orders.append(tuple(visit.sample for visit in own))
        if num_rows == 40:
            assert len(set(orders)) == 5

    def test_a_position_is_the_samples_place_in_its_epochs_permutation(self):
        one = stream()
        for visit in one.visits(10, 30):
            assert one.order.permutation(visit.epoch)[visit.position] == visit.sample

    def test_a_visits_draws_depend_on_its_number_alone(self):
        """Not on the dataset's size, the flips being wanted, or the number of timesteps of another draw."""

        def drawn(visits):
            return [(visit.crop_words, visit.caption_word, visit.timestep) for visit in visits]

        base = list(stream().visits(0, 100))
        assert drawn(base) == drawn(stream(num_rows=31, random_flip=False).visits(0, 100))
        coarse = list(stream(num_train_timesteps=10).visits(0, 100))
        assert [(v.flip, v.crop_words, v.caption_word) for v in coarse] == [
            (v.flip, v.crop_words, v.caption_word) for v in base
        ]
        assert drawn(base) != drawn(stream(seed=1).visits(0, 100))

    def test_timesteps_and_flips_cover_their_range_evenly(self):
        visits = list(stream(num_train_timesteps=10).visits(0, 5000))
        counts = [sum(visit.timestep == t for visit in visits) for t in range(10)]
        assert sum(counts) == 5000 and all(abs(count - 500) < 110 for count in counts)
        assert abs(sum(visit.flip for visit in visits) - 2500) < 5 * math.sqrt(1250)

    def test_no_flip_unless_asked_for(self):
        assert not any(visit.flip for visit in stream(random_flip=False).visits(0, 200))

    def test_memory_holds_two_permutations_at_most(self):
        one = stream(num_rows=3)
        for _ in one.visits(0, 300):
            assert len(one.order._permutations) <= 2


class TestTimesteps:
    def drawn(self, args, count=20_000, total=1000):
        source = VisitStream(
            seed=3, num_rows=7, random_flip=False, num_train_timesteps=total, timesteps=plan.timesteps(args, total)
        )
        return [visit.timestep for visit in source.visits(0, count)]

    def test_by_default_all_are_drawn_as_ever(self):
        expected = rng.below(rng.words(3, "timestep", 0, 500)[:, 0], 1000).tolist()
        assert self.drawn(TrainArgs(), 500) == expected
        assert plan.timesteps(TrainArgs(), 1000) == plan.Timesteps(0, 1000)

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
        for steps in (plan.Timesteps(5, 9), plan.Timesteps(5, 9, (0.1, 0.7, 1e-9, 1e-9))):
            assert steps.draw(words).tolist() == [5, 8]

    def test_range_and_bias_together(self):
        args = TrainArgs(min_timestep=100, max_timestep=200, timestep_bias=TimestepBias(strategy="range", end=150))
        steps = plan.timesteps(args, 1000)
        assert (steps.begin, steps.end, len(steps.weights)) == (100, 200, 100)

    @pytest.mark.parametrize(
        "args, message",
        [
            ({"min_timestep": 500, "max_timestep": 500}, "min_timestep 500 to below max_timestep 500"),
            ({"max_timestep": 1001}, "it has 1000"),
            ({"min_timestep": 1000}, "min_timestep 1000 to below max_timestep 1000"),
            ({"timestep_bias": TimestepBias(strategy="range", begin=7, end=7)}, "timestep_bias: none .* from 7"),
            ({"timestep_bias": TimestepBias(strategy="range", begin=1000, end=1001)}, "timestep_bias: none"),
            ({"max_timestep": 750, "timestep_bias": TimestepBias(strategy="later")}, "from 750 to below 1000"),
            ({"timestep_bias": TimestepBias(strategy="earlier", portion=0.0001)}, "from 0 to below 0"),
        ],
    )
    def test_nothing_to_train_is_a_task_error(self, args, message):
        with pytest.raises(TaskError, match=message):
            plan.timesteps(TrainArgs(**args), 1000)
