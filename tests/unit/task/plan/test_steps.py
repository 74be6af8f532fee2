"""The steps of a task in the whole training, and when it is validated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import TaskError
from engine.task.plan.steps import StepRange, validation_interval
from engine.task.plan.visits import MAX_VISITS, VisitStream
from engine.task.task import TrainArgs, Validation


def make(num_rows=10, processes=1, start_step=0, **args):
    return StepRange.of(TrainArgs(**args), num_rows=num_rows, processes=processes, start_step=start_step)


class TestStepRange:
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
        with pytest.raises(TaskError, match="is too large") as caught:
            make(**args)
        assert caught.value.code == 2

    def test_refusing_a_number_does_not_depend_on_being_able_to_print_it(self):
        """A product of two readable numbers may have more digits than Python converts to text."""
        with pytest.raises(TaskError, match="is too large"):
            make(10**6, batch_size=1, num_train_epochs=10**4299, max_train_epochs=10**4299)

    def test_the_last_countable_visit_is_allowed(self):
        found = make(batch_size=1, num_train_steps=MAX_VISITS, max_train_steps=MAX_VISITS)
        last = MAX_VISITS - 1
        visit = next(VisitStream(seed=0, num_rows=7, random_flip=True, num_train_timesteps=1000).visits(last, 1))
        assert found.stop_step == MAX_VISITS and visit.number == last and visit.epoch == last // 7


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
        assert validation_interval(Validation(**validation), make(batch_size=2)) == steps

    def test_does_not_depend_on_where_a_chain_is_cut(self):
        cut = make(batch_size=2, start_step=7, num_train_steps=4, max_train_steps=100)
        assert validation_interval(Validation(every_n_epochs=2), cut) == 10
