"""The worker with a stand-in for the job: which tasks it starts, how often, and where their ends lie."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.commands.forked import claims, worker
from engine.commands.forked.claims import TaskFolder
from tests.support.harness import read_json

JOB = """
import json, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
task, out = json.loads(pathlib.Path(flags["--task"]).read_bytes()), pathlib.Path(flags["--output-dir"])
with open(out.parent / "runs", "a") as runs:
    print(out.name, file=runs)
for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)):
    signal.signal(number, lambda *_, code=code: sys.exit(code))
if task.get("waits"):
    (out / "waits").touch()
    time.sleep(60)
starts = (out.parent / "runs").read_text().split().count(out.name)
sys.exit(task["codes"][min(starts, len(task["codes"])) - 1])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.setattr(worker, "preload", lambda: None)
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 0.01)

    def start(flags, *, prepare):
        return subprocess.Popen([sys.executable, str(tmp_path / "job.py"), *flags])

    monkeypatch.setattr(worker, "start_task", start)
    return tmp_path


@pytest.fixture
def run(folder):
    """Run the worker until no task is left: its exit code, and the names of the tasks that it started."""

    def run(*flags, env=()):
        argv = ["--tasks", str(folder / "tasks"), "--output", str(folder / "out"), "--exit-when-empty", *flags]
        code = worker.main(argv, {"DEVICE": "cpu", **dict(env)})
        runs = folder / "out" / "runs"
        names = runs.read_text().split() if runs.exists() else []
        runs.unlink(missing_ok=True)
        return code, names

    return run


@pytest.fixture
def put(folder):
    """Put a task there that ends with these exit codes, one after the other, then always with the last."""
    made = iter(range(1, 1000))

    def put(name, *codes, **others):
        path = folder / "tasks" / f"{name}.json"
        path.write_text(json.dumps({"codes": codes, **others}))
        os.utime(path, (1, next(made)))

    return put


@pytest.fixture
def record(folder):
    return lambda name: read_json(folder / "out" / name / "worker.json")


def there(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.json") if path.parent.parent.name != "workers"
    )


def test_the_oldest_is_first_and_each_ends_where_it_belongs(run, put, folder, record):
    put("b", 0)
    put("a", 3)
    put("c.v1", 0)
    assert run() == (0, ["b", "a", "c.v1"])
    assert there(folder / "tasks") == ["done/b.json", "done/c.v1.json", "failed/a.json"]
    assert [(record(name)["state"], record(name)["code"]) for name in "ab"] == [("failed", 3), ("done", 0)]


def test_what_is_no_task_is_left_and_reported_once(run, put, folder, capsys):
    put("ä", 0)
    put(".half", 0)
    (folder / "tasks" / "half.json.part").touch()
    (folder / "tasks" / "folder.json").mkdir()
    (folder / "tasks" / "link.json").symlink_to(folder / "job.py")
    (folder / "out" / "file").touch()
    put("file", 0)
    put("last", 0)
    assert run() == (0, ["last"])
    said = capsys.readouterr().err
    assert [said.count(f"{name}.json is not taken") for name in ("ä", "folder", "link", "file")] == [1, 1, 1, 1]
    assert "half" not in said


def test_a_temporary_failure_is_tried_again_and_nothing_else(run, put, record):
    put("a", 75, 75, 0)
    assert run() == (0, ["a", "a", "a"])
    assert record("a")["attempts"] == 3 and record("a")["state"] == "done"
    put("b", 70)
    put("c", 143)
    assert run() == (0, ["b", "c"])


def test_pauses_grow_and_end(run, put, record, folder, monkeypatch):
    paused = []
    own = claims.Claim.postpone
    monkeypatch.setattr(
        claims.Claim, "postpone", lambda claim, code: (paused.append(claim.record.pause_seconds), own(claim, code))
    )
    put("a", 75)
    assert run() == (0, ["a"] * 6)
    assert paused == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    assert record("a")["state"] == "failed" and there(folder / "tasks") == ["failed/a.json"]


def test_others_go_on_during_a_pause(run, put, monkeypatch):
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 1.0)
    put("a", 75, 0, 0)
    put("b", 0)
    assert run() == (0, ["a", "b", "a"])


def test_a_pause_does_not_grow_with_a_clock_that_is_set_back():
    paused = claims.Record(state="waiting", attempts=1, again_at=time.time() + 1e6)
    assert paused.is_due and not claims.Record(attempts=1, again_at=time.time() + 5).is_due


def test_a_task_whose_workers_were_killed_is_given_up(run, put, folder, record):
    put("a", 0)
    tasks = TaskFolder(folder / "tasks", folder / "out")
    for number in range(claims.ATTEMPTS):
        claim = tasks.claim()
        claim.begin("killed")
        claim.close()
        assert record("a")["attempts"] == number + 1
    assert run() == (0, [])
    assert (record("a")["state"], record("a")["code"]) == ("failed", 137) and "killed" in record("a")["reason"]


def test_one_that_is_put_there_again_begins_anew(run, put, record):
    put("a", 75)
    run()
    put("a", 75, 0)
    assert run() == (0, ["a", "a"])
    assert record("a")["attempts"] == 2 and record("a")["state"] == "done"


def test_a_task_that_replaces_one_that_runs_is_another_task(folder, put):
    put("a", 0)
    tasks = TaskFolder(folder / "tasks", folder / "out")
    tasks.prepare()
    claim = tasks.claim()
    assert tasks.claim() is None  # this one is another process's
    put("a", 3)  # in the same inode: its time differs
    claim.end(0)
    claim.close()
    assert there(folder / "tasks") == ["a.json"]


def test_a_damaged_record_counts_as_none(run, put, folder, record):
    for number, text in enumerate(("[]", "{", '{"attempts": null}', '{"nonsense": 1}', '{"again_at": "x"}')):
        put(f"t{number}", 0)
        (folder / "out" / f"t{number}").mkdir()
        (folder / "out" / f"t{number}" / "worker.json").write_text(text)
    assert run() == (0, ["t0", "t1", "t2", "t3", "t4"])


@pytest.fixture
def at_a_wait(folder, monkeypatch):
    """Call something once the task `a` waits."""

    def at_a_wait(act):
        own, waits = worker.Worker._wait, folder / "out" / "a" / "waits"

        def wait(self, child):
            deadline = time.monotonic() + 30
            while not waits.exists() and time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.01)
            if waits.exists():
                waits.unlink()
                act()
            return own(self, child)

        monkeypatch.setattr(worker.Worker, "_wait", wait)

    return at_a_wait


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_the_task(run, put, record, at_a_wait, signum, code, folder, capsys):
    put("a", waits=True)
    put("b", 0)
    at_a_wait(lambda: os.kill(os.getpid(), signum))
    assert run()[0] == code and there(folder / "tasks") == ["a.json", "b.json"]
    assert (record("a")["state"], record("a")["attempts"]) == ("stopped", 0)
    assert "the same command goes on" in capsys.readouterr().err


def test_a_task_is_told_to_finish(run, put, at_a_wait, folder):
    put("a", waits=True)
    put("b", 0)
    at_a_wait(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert run() == (0, ["a", "b"])


def test_a_time_limit(run, put, record, monkeypatch):
    put("a", waits=True)
    assert run("--time-limit", "1") == (0, ["a"])
    assert (record("a")["state"], record("a")["code"], record("a")["reason"]) == (
        "failed",
        143,
        "the time limit of 1 s is over",
    )


def test_a_machine_without_its_gpu_fails_no_task(run, put, record, folder, monkeypatch):
    seen = iter([True, False])
    monkeypatch.setattr(worker, "sees_device", lambda device: device == "cpu" or next(seen))
    put("a", 9)
    assert run(env={"DEVICE": "cuda"}) == (9, ["a"])
    assert there(folder / "tasks") == ["a.json"] and record("a")["attempts"] == 0
    monkeypatch.setattr(worker, "sees_device", lambda device: True)
    assert run(env={"DEVICE": "cuda"}) == (0, ["a"])
    assert there(folder / "tasks") == ["failed/a.json"]  # this task is what asks for too much


@pytest.mark.parametrize(
    "flags, env, words",
    [
        (["--", "--devise", "cpu"], {}, "--devise"),
        (["--", "--task", "x"], {}, "--task"),
        (["--", "--plan"], {}, "--plan"),
        (["--", "--checkpoint", "x"], {}, "key checkpoint"),
        ([], {"CPU_THREADS": "many"}, "CPU_THREADS"),
        ([], {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "torchrun"),
        (["--name", "../x"], {}, "--name"),
        (["--time-limit", "0"], {}, "--time-limit"),
        (["--output", "{tasks}"], {}, "--output"),
        (["--tasks", "{tasks}/none"], {}, "no such folder"),
    ],
)
def test_what_would_fail_every_task_is_refused(run, put, folder, capsys, flags, env, words):
    put("a", 0)
    flags = [flag.format(tasks=folder / "tasks") for flag in flags]
    assert run(*flags, env=env) == (2, []) and words in capsys.readouterr().err
    assert there(folder / "tasks") == ["a.json"]


def test_two_workers_have_two_names(run, folder, capsys):
    name = folder / "tasks" / "workers" / "one"
    with worker._registered(name, "one"):
        assert run("--name", "one") == (75, []) and "--name" in capsys.readouterr().err
    assert run("--name", "one") == (0, [])


def test_the_status_tells_what_it_does(run, put, folder, at_a_wait):
    path, seen = folder / "tasks" / "workers" / "one" / "status.json", []
    put("a", waits=True)
    put("b", 3)

    def act():
        seen.append(read_json(path))
        os.kill(os.getpid(), signal.SIGUSR1)

    at_a_wait(act)
    run("--name", "one")
    assert [(row["state"], row["task"]) for row in seen] == [("running", "a")]
    last = read_json(path)
    assert (last["state"], last["task"], last["done"], last["failed"]) == ("ended", None, 1, 1)
    assert last["pid"] == os.getpid() and last["time"] >= last["since"] >= last["started"]
