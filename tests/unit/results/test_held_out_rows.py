"""Rows of held-out losses: what they are the mean of, when one is due, and what of a stranger's is believed."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import CheckpointError
from engine.results import held_out_rows
from engine.results.held_out_rows import STRATA, Row
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps

CURVE, OTHER = "a" * 16, "b" * 16


def row(step, loss=0.5, curve=CURVE):
    return Row(step, loss, () if loss is None else (loss,) * STRATA, 3, curve)


def step_range(start=0, stop=10):
    return StepRange(num_rows=5, batch_size=1, micro_batches=1, start_step=start, stop_step=stop, max_steps=100)


class TestMeans:
    def test_over_images_and_timesteps(self):
        found = held_out_rows.row_of(7, [[1.0, 2.0, 3.0, 6.0], [3.0, 2.0, 1.0, 8.0]], CURVE)
        assert found == Row(7, 3.25, (2.0, 2.0, 2.0, 7.0), 2, CURVE)

    def test_the_order_of_images_changes_no_bit(self):
        draws = random.Random(0)
        losses = [[draws.random() * 10 ** draws.randrange(-9, 9) for _ in range(STRATA)] for _ in range(50)]
        expected = held_out_rows.row_of(1, losses, CURVE)
        for _ in range(5):
            draws.shuffle(losses)
            assert held_out_rows.row_of(1, losses, CURVE) == expected

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_said_not_written(self, value):
        found = held_out_rows.row_of(1, [[1.0, 1.0, value, 1.0]], CURVE)
        assert (found.loss, found.strata) == (None, ())
        assert held_out_rows.parse(held_out_rows.dump([found])) == [found]

    @pytest.mark.parametrize("raw, told", [(None, None), ([[4.0, 4.0, 5.0, 7.0]], 5.0), ([[math.inf] * 4], None)])
    def test_the_weights_themselves_beside_their_average(self, raw, told):
        found = held_out_rows.row_of(7, [[1.0, 2.0, 3.0, 6.0]], CURVE, raw=raw)
        assert (found.loss, found.raw_loss) == (3.0, told)
        assert held_out_rows.parse(held_out_rows.dump([found])) == [found]
        assert ("raw_loss" in json.loads(held_out_rows.dump([found]))) == (told is not None)


class TestTimesteps:
    @given(begin=st.integers(0, 900), extent=st.integers(1, 1000), image=st.integers(0, 1000), seed=st.integers(0, 9))
    def test_one_of_each_part_of_those_trained(self, begin, extent, image, seed):
        timesteps = Timesteps(begin, begin + extent)
        found = held_out_rows.timesteps_of(image, timesteps, seed)
        assert found == held_out_rows.timesteps_of(image, timesteps, seed) and len(found) == STRATA
        assert all(begin <= timestep < begin + extent for timestep in found)
        for k, timestep in enumerate(found) if extent >= STRATA else ():
            assert begin + extent * k // STRATA <= timestep < begin + extent * (k + 1) // STRATA

    def test_they_spread_over_each_part(self):
        drawn = [held_out_rows.timesteps_of(image, Timesteps(0, 1000), 3) for image in range(400)]
        for k, column in enumerate(zip(*drawn, strict=True)):
            assert min(column) < 250 * k + 10 and max(column) >= 250 * (k + 1) - 10
            assert abs(sum(column) / len(column) - (250 * k + 124.5)) < 12  # three standard errors

    def test_another_seed_has_others_and_weights_change_nothing(self):
        plain = held_out_rows.timesteps_of(0, Timesteps(0, 1000), 1)
        assert plain != held_out_rows.timesteps_of(0, Timesteps(0, 1000), 2)
        assert plain == held_out_rows.timesteps_of(0, Timesteps(0, 1000, (1.0,) * 999 + (5.0,)), 1)


class TestDue:
    @pytest.mark.parametrize(
        "start, stop, interval, due",
        [
            (0, 10, None, [0, 10]),
            (0, 10, 4, [0, 4, 8, 10]),
            (0, 10, 5, [0, 5, 10]),
            (3, 10, 4, [3, 4, 8, 10]),
            (0, 10, 100, [0, 10]),
            (4, 8, 4, [4, 8]),
            (4, 4, 4, [4]),
            (3, 6, 1, [3, 4, 5, 6]),
        ],
    )
    def test_at_the_ends_and_at_multiples_through_the_whole_training(self, start, stop, interval, due):
        def is_due(step):
            return held_out_rows.is_due(step, [], curve=CURVE, step_range=step_range(start, stop), interval=interval)

        assert [step for step in range(start, stop + 1) if is_due(step)] == due
        arguments = {"curve": CURVE, "step_range": step_range(start, stop), "interval": interval}
        assert held_out_rows.num_due([], **arguments) == len(due)
        assert held_out_rows.num_due([row(due[-1])], **arguments) == len(due) - 1

    def test_once(self):
        due = {"curve": CURVE, "step_range": step_range(4, 10), "interval": 2}
        assert not held_out_rows.is_due(4, [row(4)], **due)
        assert held_out_rows.is_due(4, [row(4, curve=OTHER)], **due)  # of other images: a new curve begins
        assert held_out_rows.is_due(6, [row(4)], **due)


def test_the_best_is_the_earliest_of_the_lowest():
    rows = [row(0, 0.5), row(4, 0.2), row(8, 0.2), row(10, 0.3), row(2, None)]
    assert held_out_rows.best(rows) == row(4, 0.2)
    assert held_out_rows.best([row(2, None)]) is None and held_out_rows.best([]) is None


def test_a_curve_is_what_compares_with_the_latest():
    rows = [row(0, 0.1, OTHER), row(8, 0.3), row(4, 0.4)]
    assert held_out_rows.latest_curve(rows) == [row(4, 0.4), row(8, 0.3)]
    assert held_out_rows.summary(rows, CURVE) == (0.3, 8)
    assert held_out_rows.summary(rows, OTHER) == (0.1, 0)
    assert held_out_rows.summary(rows, None) == (None, None)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.builds(
            Row, st.integers(0, 2**60), numbers, st.tuples(numbers, numbers), st.integers(0, 2**60), st.just(CURVE)
        )
    )
)
def test_rows_come_back_to_the_bit(rows):
    assert held_out_rows.parse(held_out_rows.dump(rows)) == rows


def test_no_rows_are_no_bytes():
    assert held_out_rows.dump([]) == b"" and held_out_rows.parse(b"") == []


GOOD = {"step": 1, "loss": 0.5, "strata": [0.5], "images": 2, "curve": CURVE}


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": 1.0},
        {"step": 10**400},
        {"step": True},
        {"loss": "low"},
        {"loss": math.nan},
        {"loss": True},
        {"strata": None},
        {"strata": [math.inf]},
        {"strata": ["1"]},
        {"strata": [0.5] * 65},
        {"images": "2"},
        {"images": -2},
        {"curve": "<script>"},
        {"curve": 5},
        {"curve": CURVE + "\n"},
        {"more": 1},
        {"a\nb": 1},
        {"step": "\x1b[2J"},
    ],
)
def test_a_strangers_rows_are_checked(changes):
    held_out_rows.parse(json.dumps(GOOD).encode() + b"\n")
    with pytest.raises(CheckpointError, match="held-out losses are malformed") as caught:
        held_out_rows.parse(json.dumps(GOOD | changes).encode() + b"\n")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"{}", b"[]", b"5", b"\xff", b"{", b"[" * 100_000, b'{"step": 1}'])
def test_what_is_no_row_is_refused(data):
    with pytest.raises(CheckpointError, match="held-out losses are malformed"):
        held_out_rows.parse(data)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d.replace(b": ", b":", 1), lambda d: d + b"\n"])
def test_the_same_rows_in_other_bytes_are_refused(change):
    data = held_out_rows.dump(held_out_rows.parse(json.dumps(GOOD).encode() + b"\n"))
    with pytest.raises(CheckpointError, match=r"not written as|Expecting value"):
        held_out_rows.parse(change(data))
