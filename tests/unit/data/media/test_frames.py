"""The frames of a clip that a visit shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.media.frames import choose_frames
from engine.data.media.geometry import UnreadableImage

HIGHEST = 2**64 - 1


def positions(*args, **options):
    return choose_frames(*args, **options).positions


def test_head_takes_the_first_frames():
    assert positions(10, 4, "head", turn=7, word=HIGHEST) == (0, 1, 2, 3)


def test_chunks_follow_each_other_from_pass_to_pass():
    assert [positions(10, 4, "chunk", turn=turn)[0] for turn in range(5)] == [0, 4, 0, 4, 0]
    assert positions(8, 4, "chunk", turn=1) == (4, 5, 6, 7)


@pytest.mark.parametrize(
    "available, count, wanted", [(9, 5, (0, 2, 4, 6, 8)), (10, 4, (0, 3, 6, 9)), (5, 4, (0, 1, 3, 4)), (7, 1, (3,))]
)
def test_uniform_reaches_from_the_first_to_the_last_frame(available, count, wanted):
    assert positions(available, count, "uniform") == wanted


@given(st.data(), st.integers(1, 300), st.sampled_from(["head", "chunk", "uniform", "random"]))
def test_frames_are_distinct_and_in_order(data, available, extraction):
    count = data.draw(st.integers(1, available))
    turn, word = data.draw(st.integers(0, 1000)), data.draw(st.integers(0, HIGHEST))
    found = choose_frames(available, count, extraction, turn=turn, word=word)
    assert len(found.positions) == count and list(found.positions) == sorted(set(found.positions))
    assert found.positions[0] >= 0 and found.positions[-1] < available
    assert found.repeatable == (extraction != "random" or available == count)


def test_random_reaches_every_start():
    starts = {positions(6, 4, "random", word=i << 61)[0] for i in range(8)}
    assert starts == {0, 1, 2} and positions(6, 4, "random", word=HIGHEST)[0] == 2


@pytest.mark.parametrize("available, what", [(1, "it has 1 frame"), (3, "it has 3 frames")])
def test_a_short_clip_is_refused(available, what):
    with pytest.raises(UnreadableImage, match=f"{what}, fewer than the 5 of train_args.num_frames"):
        choose_frames(available, 5, "head")
