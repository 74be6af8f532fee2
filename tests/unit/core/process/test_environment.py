"""Which of a job's processes this is."""

import pytest

from engine.core.errors import TaskError
from engine.core.process.environment import LAUNCHED, Place, read_place

MEETING = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


def test_alone():
    assert read_place({}) == read_place({"WORLD_SIZE": "1", "RANK": "0"}) == read_place({"WORLD_SIZE": ""}) == Place()
    assert Place().is_first and Place().multiplier == 1


def test_torchrun_multiplies_the_accumulation_and_our_own_launcher_shares_it_out():
    started = read_place(MEETING)
    assert (started.rank, started.world_size, started.local_rank, started.is_first) == (3, 8, 1, False)
    shared = read_place({**MEETING, LAUNCHED: "/tmp/x"})
    assert (started.multiplier, shared.multiplier) == (8, 1)
    assert (started.num_here, shared.num_here, Place().num_here) == (1, 8, 1)


def test_without_a_local_rank_it_is_the_rank():
    assert read_place({key: value for key, value in MEETING.items() if key != "LOCAL_RANK"}).local_rank == 3


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(missing):
    with pytest.raises(TaskError, match=f"WORLD_SIZE is 8, but {missing} is not set"):
        read_place({key: value for key, value in MEETING.items() if key != missing})
