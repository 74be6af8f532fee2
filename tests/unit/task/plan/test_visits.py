"""The stream of visits."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.task.plan.visits import VisitStream


def stream(seed=0, num_rows=7, random_flip=True, num_train_timesteps=1000):
    return VisitStream(seed=seed, num_rows=num_rows, random_flip=random_flip, num_train_timesteps=num_train_timesteps)


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
