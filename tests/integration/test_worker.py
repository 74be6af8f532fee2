"""`entrypoint.py worker` with the real job: a task's bytes do not depend on it, nor on the worker's end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support.harness import (
    ENTRYPOINT,
    PATIENCE,
    Finished,
    assert_same,
    changed,
    clean_environment,
    reached_step,
    read_json,
    succeed,
)


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


@contextlib.contextmanager
def working(tasks, *flags, **env):
    """A worker that runs."""
    command = [sys.executable, ENTRYPOINT, "worker", "--tasks", tasks, "--output", tasks.parent / "out", *flags]
    environment = clean_environment(tasks.parent) | env
    with (tasks.parent / "worker.log").open("ab") as log:
        worker = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait(PATIENCE)


def until(condition, worker, log):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert worker.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def result(tasks, name):
    out = tasks.parent / "out" / name
    return Finished(code=read_json(out / "worker.json")["code"], stdout="", stderr="", out=out)


def test_each_task_has_the_bytes_of_a_job_of_its_own(short_task, tasks):
    (tasks / "wrong.json").write_text("{}")
    (tasks / "cat.json.part").write_text(json.dumps(short_task)[:100])
    (tasks / "cat.json").write_text(json.dumps(short_task))
    with working(tasks, "--exit-when-empty", "--name", "one") as worker:
        assert worker.wait(PATIENCE) == 0, (tasks.parent / "worker.log").read_text()
    log = (tasks.parent / "worker.log").read_text()
    assert sorted(path.name for path in tasks.glob("*.json*")) == ["cat.json.part"], log
    assert (tasks / "done" / "cat.json").exists() and (tasks / "failed" / "wrong.json").exists()
    cat, wrong = result(tasks, "cat"), result(tasks, "wrong")
    assert (cat.code, wrong.code) == (0, 2) == (cat.result["code"], wrong.result["code"])
    assert cat.result["seconds"]["start"] < 3  # nothing was imported, which takes 5 s
    assert "step" in (cat.out / "log.txt").read_text() and "error: " in (wrong.out / "log.txt").read_text()
    assert "Traceback" not in log and "error: " not in log
    status = read_json(tasks / "workers" / "one" / "status.json")
    assert (status["state"], status["done"], status["failed"]) == ("ended", 1, 1)
    assert_same(cat.folders(), succeed(short_task, tasks.parent / "single").folders())


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_leaves_its_task_to_the_next_one(task, tasks, signum):
    """The progress is saved: at SIGTERM at once."""
    longer = changed(task, {"train_args.num_train_steps": 100, "train_args.max_train_steps": 100})
    (tasks / "cat.json").write_text(json.dumps(longer))
    out, log = tasks.parent / "out" / "cat", tasks.parent / "worker.log"
    with working(tasks, SAVE_SECONDS="0") as worker:
        until(lambda: reached_step(out) >= 3, worker, log)
        with working(tasks, "--exit-when-empty", "--name", "other") as other:  # it finds nothing to do
            assert other.wait(PATIENCE) == 0
        worker.send_signal(signum)
        assert worker.wait(PATIENCE) == (143 if signum == signal.SIGTERM else -9)
    assert (tasks / "cat.json").exists() and reached_step(out) < 100
    assert read_json(out / "worker.json")["state"] == ("stopped" if signum == signal.SIGTERM else "running")
    with working(tasks, "--exit-when-empty", "--name", "other") as worker:
        assert worker.wait(PATIENCE) == 0
    again = result(tasks, "cat")
    assert again.result["resumed_from_step"] > 0
    assert read_json(out / "worker.json")["attempts"] == (1 if signum == signal.SIGTERM else 2)
    assert_same(again.folders(), succeed(longer, tasks.parent / "single").folders())


@pytest.mark.slow
def test_a_time_limit_saves_the_progress(task, tasks):
    longer = changed(task, {"train_args.num_train_steps": 5000, "train_args.max_train_steps": 5000})
    (tasks / "cat.json").write_text(json.dumps(longer))
    with working(tasks, "--exit-when-empty", "--time-limit", "15") as worker:
        assert worker.wait(PATIENCE) == 0
    out = tasks.parent / "out" / "cat"
    record = read_json(out / "worker.json")
    assert (record["state"], record["code"]) == ("failed", 143) and "time limit" in record["reason"]
    assert (tasks / "failed" / "cat.json").exists() and (out / ".job" / "progress").exists()
