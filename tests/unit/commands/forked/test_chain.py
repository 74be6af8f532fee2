"""The chain with a stand-in for the job: which results it makes, and from which checkpoints."""

import json
import subprocess
import sys

import pytest

from engine.commands.forked import chain

JOB = """
import json, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out, parent = pathlib.Path(flags["--output-dir"]), flags.get("--checkpoint")
args = json.loads(pathlib.Path(flags["--task"]).read_bytes())["train_args"]
with open(out.parent / "runs", "a") as runs:
    print(out.name, parent and pathlib.Path(parent).parent.name, file=runs)
own = out / "checkpoint"
if (own / "manifest.json").exists():
    told = json.loads((own / "state.json").read_bytes())["settings"]["train_args"]
    sys.exit(0 if told == args else 7)
step = int(pathlib.Path(parent, "global_step.txt").read_text()) if parent else 0
before, step = step, min(step + 4, args["max_train_steps"])
own.mkdir(parents=True)
ended = {"global_step": step, "steps_trained": step - before, "seconds": {"start": 20, "train": 100}}
while args.get("waits") and out.name == "001" and not ended.get("finish_now"):
    time.sleep(0.01)
    ended["finish_now"] = (out / "FINISH_NOW").exists()
(out / "result.json").write_text(json.dumps(ended))
(own / "global_step.txt").write_text(str(step))
(own / "state.json").write_text(json.dumps({"settings": {"train_args": args}}))
if step == args["max_train_steps"]:
    (own / "FINISH").touch()
(own / "manifest.json").write_text("{}")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the chain with a task of so many steps: its exit code, and (result, parent) of each job since the last."""
    job = tmp_path / "job.py"
    job.write_text(JOB)
    monkeypatch.setattr(chain, "preload", lambda: None)
    monkeypatch.setattr(chain, "start_task", lambda flags: subprocess.Popen([sys.executable, job, *flags]))

    def run(steps, **others):
        task, runs = tmp_path / "task.json", tmp_path / "out" / "runs"
        task.write_text(json.dumps({"train_args": {"max_train_steps": steps, **others}}))
        (tmp_path / "out").mkdir(exist_ok=True)
        runs.write_text("")
        code = chain.main(["--task", str(task), "--output", str(tmp_path / "out")], {})
        return code, [tuple(line.split()) for line in runs.read_text().splitlines()]

    return run


def test_from_the_first_task_to_the_end(run):
    assert run(10) == (0, [("000", "None"), ("001", "000"), ("002", "001")])


def test_it_tells_how_long_the_rest_takes(run, capsys, tmp_path):
    """At 30 s a step."""
    run(10)
    told = capsys.readouterr().out.splitlines()
    out = tmp_path / "out"
    assert told[:2] == [
        f"{out}/000 is done: step 4 of 10, about 3 min left",
        f"{out}/001 is done: step 8 of 10, about 1 min left",
    ]
    assert told[2].startswith("the training is finished") and told[2].endswith(f"{out}/002/checkpoint")
    assert f"{out}/002/report.html" in told[2]


def test_of_epochs_it_cannot_know_how_many_steps_they_are(run, capsys, tmp_path):
    run(10, max_train_epochs=1)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out/000 is done: step 4\n")


def test_a_request_to_finish_is_passed_on_and_ends_it_once(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "_LOOK_SECONDS", 0.05)
    own, start = chain.run_task, [("000", "None"), ("001", "000")]

    def run_task(flags, output, result):
        if result.name == "001":
            (output / "FINISH_NOW").touch()
        return own(flags, output, result)

    monkeypatch.setattr(chain, "run_task", run_task)
    assert run(10, waits=True) == (0, start)
    assert "told to finish" in capsys.readouterr().out and not (tmp_path / "out" / "FINISH_NOW").exists()
    monkeypatch.setattr(chain, "run_task", own)
    assert run(10, waits=True) == (0, [start[1], ("002", "001")])


def test_a_finished_chain_is_looked_at_once(run):
    run(10)
    assert run(10) == (0, [("002", "001")])


def test_a_finished_chain_is_made_longer(run, tmp_path):
    run(8)
    assert run(14) == (0, [("002", "001"), ("003", "002")])
    assert (tmp_path / "out" / "003" / "checkpoint" / "global_step.txt").read_text() == "14"
    assert run(14) == (0, [("003", "002")])


def test_so_is_one_that_ended_after_one_task_or_by_epochs(run):
    run(3, max_train_epochs=1)
    assert run(5, max_train_epochs=1) == (0, [("001", "000")])
    assert run(5, max_train_epochs=2)[1][0] == ("002", "001")


def test_an_interrupted_chain_goes_on_at_its_last_result(run, tmp_path):
    run(10)
    for name in ("manifest.json", "FINISH"):
        (tmp_path / "out" / "002" / "checkpoint" / name).unlink()
    (tmp_path / "out" / "002" / "checkpoint").rename(tmp_path / "out" / "002" / "half")
    assert run(10) == (0, [("001", "000"), ("002", "001")])


@pytest.mark.parametrize("steps, others", [(6, {}), (8, {"learning_rate": 1})])
def test_another_task_is_refused_by_the_job(run, steps, others):
    run(8)
    assert run(steps, **others) == (7, [("001", "000")])


def test_a_task_that_is_none_is_left_to_the_job(run, tmp_path):
    run(8)
    (tmp_path / "out" / "001" / "checkpoint" / "state.json").write_text("[]")
    assert run(20)[0] != 0
