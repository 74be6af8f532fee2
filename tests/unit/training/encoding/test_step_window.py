"""Windows of steps: what is in memory at once, and steps of more visits than that."""

import pytest

from engine.training.encoding import step_window
from tests.support.encoding import BATCH, STEPS, Setup, frozen, good, with_unreadable


def test_what_is_encoded_already_is_at_hand_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(step_window, "WINDOW_VISITS", 3 * BATCH)
    expected, setup = Setup(good(), tmp_path / "a").run(), Setup(good(), tmp_path / "b")
    found = []
    for step in range(STEPS + 1):
        at_hand = setup.encoder.at_hand(step)
        assert bool(at_hand) == (step % 3 != 0), "a window is three steps"
        found += [at_hand] if at_hand else [setup.encoder.examples(step)] if step < STEPS else []
    assert frozen(found) == frozen(expected)


def test_the_first_step_may_be_encoded_alone(tmp_path):
    """Then windows grow; the examples are the same."""
    expected, setup = Setup(good(), tmp_path / "a").run(), Setup(good(), tmp_path / "b", starts_small=True)
    planned, visits = [], setup.stream.visits
    setup.stream.visits = lambda start, count: planned.append(count // BATCH) or visits(start, count)
    assert frozen(setup.run()) == frozen(expected)
    assert planned == [1, 4, STEPS - 5]


class TestBytes:
    """The window of a family with large encodings has fewer visits."""

    @pytest.mark.parametrize("visit_bytes, visits", [(0, 128), (368_000, 1024), (6_300_000, 170), (1 << 40, 1)])
    def test_a_window_takes_a_gibibyte_at_most(self, visit_bytes, visits):
        size = step_window.WindowSize()
        size.measured(visit_bytes)
        assert size.visits == visits

    @pytest.mark.parametrize("latents_bytes, visits", [(0, 128), (2_097_152, 128), (61_000_000, 17), (1 << 40, 1)])
    def test_the_first_window_is_bounded_by_what_latents_may_take(self, latents_bytes, visits):
        assert step_window.WindowSize(latents_bytes).visits == visits

    def test_a_window_after_short_clips_has_room_for_long_ones(self):
        size = step_window.WindowSize(61_000_000)
        size.measured(100_000)
        assert size.visits == 17

    def test_the_latents_of_the_largest_visits_are_known_before_the_first(self, tmp_path):
        setup = Setup(good(1), tmp_path)
        assert setup.encoder._size._latents_bytes == 2 * 48 * 4

    def test_the_examples_are_the_same_in_smaller_windows(self, tmp_path, monkeypatch):
        """A visit has moments of 2 x 48 numbers, a caption's 2 numbers and a corner of 3."""
        expected, setup = Setup(good(), tmp_path / "a").run(), Setup(good(), tmp_path / "b")
        monkeypatch.setattr(step_window, "_FIRST_VISITS", BATCH)
        monkeypatch.setattr(step_window, "WINDOW_BYTES", 3 * BATCH * (96 * 4 + 2 * 4 + 3 * 8))
        planned, visits = [], setup.stream.visits
        setup.stream.visits = lambda start, count: planned.append(count) or visits(start, count)
        assert frozen(setup.run()) == frozen(expected)
        assert planned == [BATCH, *[3 * BATCH] * 3, 2 * BATCH], (
            "two moments of 48 numbers, a caption of 2, a corner of 3"
        )

    def test_what_visits_share_counts_once(self, tmp_path):
        """Twelve steps of two visits of a single image and caption, each with a corner of its own."""
        setup = Setup(good(1), tmp_path, flip=False, center_crop=True)
        measured = []
        setup.encoder._size.measured = measured.append
        setup.run()
        assert measured == [(2 * 48 * 4 + 2 * 4) // (STEPS * BATCH) + 3 * 8]


class TestLongSteps:
    """Steps of more visits than a window: 20 million of them must not take memory."""

    MICRO_BATCHES = 6

    def examples(self, folder, images=None):
        setup = Setup(images or good(), folder, micro_batches=self.MICRO_BATCHES)
        return setup, [setup.encoder.examples(step) for step in range(2)]

    @pytest.mark.parametrize("images", [good(), with_unreadable()], ids=["good", "unreadable"])
    @pytest.mark.parametrize("window", [1, 2 * BATCH, 5 * BATCH])
    def test_the_examples_are_the_same(self, window, images, tmp_path, monkeypatch):
        _, expected = self.examples(tmp_path / "a", images)
        monkeypatch.setattr(step_window, "WINDOW_VISITS", window)
        _, found = self.examples(tmp_path / "b", images)
        assert [len(step) for step in found] == [self.MICRO_BATCHES * BATCH] * 2
        assert frozen(found) == frozen(expected)

    def test_no_more_than_a_window_is_planned_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 2 * BATCH)
        setup, (step, _) = self.examples(tmp_path)
        counts, visits = [], setup.stream.visits
        setup.stream.visits = lambda start, count: counts.append(count) or visits(start, count)
        assert len(step[:BATCH]) == BATCH and counts == [2 * BATCH]
        step[BATCH : 2 * BATCH], step[2 * BATCH : 3 * BATCH]
        assert counts == [2 * BATCH] * 2

    def test_a_signal_need_not_wait_for_the_end_of_the_step(self, tmp_path, monkeypatch):
        monkeypatch.setattr(step_window, "WINDOW_VISITS", 2 * BATCH)
        setup, (step, _) = self.examples(tmp_path)
        assert step[:BATCH]
        before = setup.stops
        assert step[BATCH : 2 * BATCH] and setup.stops == before + 1, "of the same window, which encodes nothing"

    def test_a_step_of_billions_costs_what_is_looked_at(self, tmp_path):
        setup = Setup(good(), tmp_path, micro_batches=10**12)
        step = setup.encoder.examples(0)
        assert len(step) == 10**12 * BATCH and len(step[:BATCH]) == BATCH
