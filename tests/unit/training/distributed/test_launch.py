"""How many processes a job starts, and what it tells them."""

import dataclasses
import gc
import logging
import os
import signal
import sys
import threading
import time

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


@pytest.fixture
def heartbeats(monkeypatch):
    """Heartbeats of torch's rendezvous that begin at once and last until `finish` is set: `begun` counts them."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    class Heartbeats:
        begun = threading.Semaphore(0)
        finish = threading.Event()
        thread = None

        def beat(self):
            self.thread = threading.current_thread()
            self.begun.release()
            self.finish.wait(30)

    found = Heartbeats()
    timer = dynamic_rendezvous._PeriodicTimer
    start = timer.start

    def start_at_once(self):
        self._ctx.interval = 0.01
        start(self)

    monkeypatch.setattr(timer, "start", start_at_once)
    monkeypatch.setattr(dynamic_rendezvous.DynamicRendezvousHandler, "_keep_alive", found.beat)
    yield found
    found.finish.set()
    launch._INTERRUPTIONS.clear()


@pytest.fixture
def _own_process(monkeypatch):
    """Restore what a launch changes in its process."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    handlers = {signum: signal.getsignal(signum) for signum in names}
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    yield
    logger.setLevel(level)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("_own_process")
def test_a_signal_during_a_heartbeat_prints_no_traceback(monkeypatch, tmp_path, heartbeats):
    """The thread of the heartbeats must not be the one that deletes the rendezvous, which would join that thread."""
    started = tmp_path / "started"
    (tmp_path / "program.py").write_text(f"import time\nopen({str(started)!r}, 'w').close()\ntime.sleep(60)\n")
    monkeypatch.setattr(launch, "ENTRYPOINT", str(tmp_path / "program.py"))
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)

    def stop():
        assert heartbeats.begun.acquire(timeout=30)
        while not started.exists():  # torch handles signals from then on
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=stop)
    sender.start()
    assert launch._start(1, [], {}, str(tmp_path)) == signal.SIGTERM
    sender.join()
    gc.collect()
    heartbeats.finish.set()
    deadline = time.monotonic() + 30
    while not heartbeats.begun.acquire(timeout=0.01) and heartbeats.thread.is_alive():
        assert time.monotonic() < deadline
    assert printed == []
