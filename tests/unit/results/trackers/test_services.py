"""Services in processes of their own: told of everything, and none can fail, hang or crash the job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from engine.core import console
from engine.core.errors import TaskError
from engine.core.process.startup import ROOT
from engine.results.history import StepReport
from engine.results.trackers import registry, services
from engine.results.trackers.registry import SERVICES, require_services
from engine.results.trackers.service import Followed
from engine.results.trackers.services import Services
from tests.support.reports import png

pytestmark = pytest.mark.long


def followed(folder, **changes):
    values = {"run": "0123456789abcdef", "name": "a model on images", "step": 0, "visits_per_step": 2}
    values |= {"start_step": 0, "stop_step": 10}
    return Followed(**{**values, "folder": str(folder), "task": {"seed": 7}, **changes})


def step(number):
    return StepReport(number, 1 / number, 1e-4, None if number == 2 else 0.5)


@pytest.fixture
def toy(monkeypatch):
    """Services of `tests/support/toy_services.py` in place of the real ones' process."""
    monkeypatch.setattr(services, "ENTRYPOINT", f"{ROOT}/tests/support/toy_services.py")
    monkeypatch.setattr(console, "_log", console._Log())


def follow(names, folder, tell=lambda found: None):
    """Follow a training, and return the seconds that the job waited."""
    start = time.monotonic()
    found = Services(names)
    found.begin(lambda: followed(folder))
    found.phase("train")
    for number in (1, 2, 3):
        found.step(step(number))
    found.held_out_loss(3, None)
    found.held_out_loss(3, 0.25)
    found.pictures(3, {"0.png": png()}, {"0.png": "a cat"})
    tell(found)
    found.close()
    found.close()
    return time.monotonic() - start


def test_it_is_told_of_everything_in_order(toy, tmp_path):
    follow(["records"], tmp_path)
    lines = (tmp_path / "records").read_text().splitlines()
    assert lines[0] == "open 0123456789abcdef 0"
    assert lines[1].startswith("log 1 {'train/grad_norm': 0.5, 'train/images_per_second': ")
    assert "grad_norm" not in lines[2] and lines[4:] == ["log 3 {'heldout/loss': 0.25}", "pictures 3 0 a cat", "close"]
    assert console.notes() == []


@pytest.mark.parametrize(
    "name, reason",
    [
        ("fails at once", "no API key"),
        ("fails later", "no route to the tracking server"),
        ("crashes", "its process ended with code -9"),
    ],
)
def test_one_that_fails_is_one_warning(toy, tmp_path, name, reason):
    seconds = follow([name, "records"], tmp_path)
    assert console.notes() == [f"the tracker {name} failed ({reason}); the training is not affected"]
    assert (tmp_path / "records").read_text().endswith("close\n") and seconds < 20


def test_those_that_hang_cost_the_same_few_seconds_together(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "CLOSE_SECONDS", 1.0)
    start = time.monotonic()
    found = Services(["hangs", "hangs too"])
    found.begin(lambda: followed(tmp_path))
    for number in range(1, 2000):  # more than a pipe holds
        found.step(step(number))
    assert time.monotonic() - start < 3.0
    closing = time.monotonic()
    found.close()
    assert time.monotonic() - closing < 2.5
    assert len(console.notes()) == 2 and all("has not taken everything within 1 s" in note for note in console.notes())


def test_one_that_takes_nothing_is_left_alone_before_memory_fills(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(services, "_MAX_WAITING_BYTES", 200_000)
    found = Services(["hangs"])
    found.begin(lambda: followed(tmp_path))
    for number in range(1, 5000):
        found.step(step(number))
    assert console.notes() == [
        "the tracker hangs failed (it does not take what it is sent); the training is not affected"
    ]
    found.close()


def test_nothing_of_it_is_left(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "CLOSE_SECONDS", 0.5)
    found = Services(["hangs"])
    found.begin(lambda: followed(tmp_path))
    pid = found._open["hangs"]._process.pid
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_job_that_is_killed_leaves_a_service_that_closes(tmp_path):
    program = (
        "from tests.unit.results.trackers.test_services import *\n"
        f"services.ENTRYPOINT = {f'{ROOT}/tests/support/toy_services.py'!r}\n"
        "found = Services(['records'])\n"
        f"found.begin(lambda: followed({str(tmp_path)!r}))\n"
        "found.step(step(1))\n"
        "print('told', flush=True)\n"
        "time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    job.stdout.readline()
    record = tmp_path / "records"
    wait_for(lambda: record.exists() and "log 1" in record.read_text())
    job.send_signal(signal.SIGKILL)
    job.wait()
    wait_for(lambda: record.read_text().endswith("close\n"))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_services_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    assert follow([], tmp_path) < 1.0


def test_a_service_that_is_not_there_is_refused():
    with pytest.raises(TaskError, match="names 'tensorbord': expected some of tensorboard, wandb, mlflow, kubeflow"):
        require_services(["tensorbord"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_is_not_installed_is_refused_with_advice(monkeypatch, name):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        TaskError, match=rf"names {name}, but .* pip install --no-deps -r requirements-trackers.txt, or .*TRACKERS=1"
    ):
        require_services([name])
