"""The resampling rule, in exact arithmetic."""

from fractions import Fraction

import pytest

from engine.data.media.geometry import UnreadableImage
from engine.data.media.video.times import MAX_FRAMES, FrameTimes


def constant(count, rate, timescale=None):
    """Times of a constant rate, rounded to the ticks of a container."""
    tick = Fraction(1, timescale) if timescale else 1 / Fraction(rate)
    return FrameTimes(tuple(round(i / Fraction(rate) / tick) for i in range(count)), tick)


@pytest.mark.parametrize(
    "count, rate, wanted, frames",
    [
        (60, 30, 24, 48),
        (48, 24, 30, 60),
        (50, 25, 16, 32),
        (32, 16, 24, 48),
        (48, 24, 24, 48),
        (1, 24, 16, 1),
        (60, Fraction(30000, 1001), 29.97, 60),
        (121, 24, 8, 40),
        (24, 24, 12, 12),
    ],
)
@pytest.mark.parametrize("timescale", [None, 1000, 90_000])
def test_a_clip_keeps_its_duration(count, rate, wanted, frames, timescale):
    """Also where the container rounds times to milliseconds."""
    assert constant(count, rate, timescale).num_frames(wanted) == frames


def test_the_same_rate_is_the_same_frames():
    for timescale in (None, 1000, 600):
        times = constant(97, 24, timescale)
        assert times.num_frames(24.0) == times.num_frames(None) == 97
        assert times.file_frames(range(97), 24.0) == times.file_frames(range(97), None) == list(range(97))


def test_the_nearest_frame_is_shown_and_of_two_the_earlier():
    times = FrameTimes((0, 10, 20, 40), Fraction(1, 10))
    assert times.file_frames(range(5), 1.0) == [0, 1, 2, 2, 3]  # 3 s is between the frames at 2 and 4 s
    assert times.file_frames(range(11), 2.0) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert times.num_frames(2.0) == 11 and times.num_frames(0.1) == 1  # 5.33 seconds: the last frame is an average one


def test_it_is_nearest_by_definition():
    """Against a search over all frames."""
    times = FrameTimes((3, 4, 11, 11, 30, 31, 47), Fraction(1, 7))
    for rate in (0.5, 1.7, 3.0, 24.0):
        for k, found in enumerate(times.file_frames(range(times.num_frames(rate)), rate)):
            at = 3 + k / (Fraction(str(rate)) / 7)
            assert found == min(range(7), key=lambda i: (abs(times.ticks[i] - at), i))


def test_times_do_not_begin_at_zero():
    shifted = FrameTimes(tuple(5000 + i for i in range(0, 480, 10)), Fraction(1, 240))
    assert shifted.num_frames(12.0) == 24 and shifted.file_frames([0, 1, 23], 12.0) == [0, 2, 46]


@pytest.mark.parametrize(
    "times, rate, variable",
    [
        (constant(48, 24), 24, False),
        (constant(48, 24, 1000), Fraction(47_000, 1958), False),
        (constant(30, Fraction(30000, 1001), 90_000), Fraction(30000, 1001), False),
        (FrameTimes((0, 40, 41, 200), Fraction(1, 1000)), 15, True),
        (FrameTimes((0, 4, 8, 13), Fraction(1, 100)), Fraction(300, 13), False),
        (FrameTimes((7,), Fraction(1, 1000)), None, False),
        (FrameTimes((7, 7), Fraction(1, 1000)), None, False),
    ],
)
def test_the_rate_is_that_of_the_frames_own_times(times, rate, variable):
    assert times.average_rate == rate and times.has_variable_rate is variable


def test_a_rate_that_makes_too_many_frames_is_refused():
    hours = FrameTimes((0, 10_000), Fraction(1))
    assert hours.num_frames(1.0) == 20_000
    with pytest.raises(UnreadableImage, match=f"at 24 frames a second it has 480,000, more than {MAX_FRAMES:,} frames"):
        hours.num_frames(24.0)
