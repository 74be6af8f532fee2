"""How many processes a job starts, and what it tells them."""

import dataclasses

import pytest

from engine.core.process.environment import Place
from engine.task.settings import read_flags, read_settings
from engine.task.task import Dataset, Model, Task, TrainArgs
from engine.training.distributed import launch
from engine.training.distributed.launch import largest_divisor, launch_of


@pytest.mark.parametrize(
    "number, limit, expected", [(8, 8, 8), (8, 7, 4), (6, 4, 3), (7, 4, 1), (1, 8, 1), (12, 100, 12), (5, 0, 1)]
)
def test_the_largest_divisor(number, limit, expected):
    assert largest_divisor(number, limit) == expected
    assert number % expected == 0


def settings(**env):
    return read_settings(read_flags([]), {"TASK_JSON": "{}", "DEVICE": "cpu", **env})


def task(accumulation):
    args = TrainArgs(gradient_accumulation_steps=accumulation)
    return Task(model=Model(name="m"), dataset=Dataset(name="d"), train_args=args)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


class TestLaunchOf:
    def test_a_cpu_has_one_process_unless_it_is_asked_for_more(self):
        assert launch_of(settings(), task(8), "r") is None
        assert launch_of(settings(PROCESSES="3"), task(8), "r").processes == 2
        assert launch_of(settings(PROCESSES="3"), task(7), "r") is None

    @pytest.mark.parametrize(
        "gpus, wanted, expected", [(8, None, 4), (2, None, 2), (8, "2", 2), (2, "8", 2), (1, "8", 0)]
    )
    def test_gpus(self, monkeypatch, gpus, wanted, expected):
        monkeypatch.setattr(launch, "num_gpus", lambda: gpus)
        env = {"DEVICE": "cuda"} | ({"PROCESSES": wanted} if wanted else {})
        found = launch_of(settings(**env), task(4), "r")
        assert (found.processes if found else 0) == expected

    def test_one_that_was_started_by_a_launcher_starts_none(self, monkeypatch):
        own = dataclasses.replace(settings(PROCESSES="2"), place=Place(1, 2, 1))
        assert launch_of(own, task(2), "r") is None
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert launch_of(settings(PROCESSES="2"), task(2), "r") is None

    def test_a_task_too_large_to_hand_on_is_done_by_one(self):
        large = dataclasses.replace(settings(PROCESSES="2"), task_source="standard input", task_bytes=b" " * 200_000)
        assert launch_of(large, task(2), "r") is None


def test_a_task_from_standard_input_is_handed_on():
    assert launch._arguments(["--plan", "--task", "-", "--overwrite"]) == ["--plan", "--overwrite"]
    assert launch._arguments(["--task=-"]) == []
    assert launch._arguments(["--task", "x.json"]) == ["--task", "x.json"]


def test_a_process_leaves_its_code_where_its_launcher_looks(tmp_path):
    for rank, code in (("10", 75), ("9", 2)):
        launch.leave_code({launch.EXIT_CODES: str(tmp_path), "RANK": rank}, code)
    (tmp_path / "8").touch()  # killed while it wrote
    (tmp_path / "torchelastic_x").mkdir()  # the launcher's own log
    assert list(launch.left_codes(tmp_path).items()) == [(9, 2), (10, 75)]


@pytest.mark.parametrize(
    "signum, codes, code, kind",
    [
        (15, [None, 75], 143, "interrupted"),
        (0, [None, 75], 75, "temporary"),
        (0, [None, None], 75, "temporary"),
        (0, [None, 75, 3], 3, "dataset"),
        (0, [None, 70], 70, "bug"),
    ],
)
def test_the_reason_where_the_first_process_left_none(signum, codes, code, kind):
    error = launch._reason(signum, codes)
    assert (error.code, error.kind) == (code, kind)
