"""Sizes of what is shown, and the numbers of frames of buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.task.plan.extent import Extent, frame_counts


def test_an_image_is_one_frame():
    assert Extent(3, 2) == (3, 2, 1) and Extent(3, 2).size == (3, 2)
    assert str(Extent(3, 2)) == "3 x 2" and str(Extent(3, 2, 5)) == "3 x 2 x 5 frames"


@pytest.mark.parametrize(
    "num_frames, step, wanted",
    [
        (81, 4, (1, 5, 9, 21, 41, 81)),
        (121, 8, (1, 9, 25, 57, 121)),
        (5, 4, (1, 5)),
        (1, 8, (1,)),
    ],
)
def test_each_number_of_frames_has_half_the_latents_of_the_next(num_frames, step, wanted):
    assert frame_counts(num_frames, step) == wanted


@given(k=st.integers(0, 5000), step=st.sampled_from([1, 4, 8]))
def test_every_number_of_frames_is_valid(k, step):
    found = frame_counts(step * k + 1, step)
    assert found[0] == 1 and found[-1] == step * k + 1 and list(found) == sorted(set(found))
    assert all((count - 1) % step == 0 for count in found)
