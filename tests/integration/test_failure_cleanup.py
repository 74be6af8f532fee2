"""Jobs that end badly leave nothing in the way: of their correction, of their continuation, of the truth."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from engine.commands.forked import chain, task
from tests.support.harness import ENTRYPOINT, changed, progress, read_json, run_job, snapshot, start_job, succeed
from tests.support.tiny import build_dataset


def test_a_failed_job_does_not_block_its_correction(short_task, tmp_path):
    wrong = run_job(changed(short_task, {"lora.target_modules": ["no_such_layer"]}), tmp_path / "out")
    assert wrong.code == 2 and wrong.result["code"] == 2
    assert succeed(short_task, tmp_path / "out").result["status"] == "done"


def test_result_json_always_tells_of_the_result_beside_it(short_task, tmp_path):
    """A job that is stopped between publishing and telling so is told of by the next start."""
    done = succeed(short_task, tmp_path / "out")
    truth = {key: done.result[key] for key in ("status", "code", "global_step", "finished", "checkpoint_digest")}
    for untrue in (None, {"status": "interrupted", "code": 143, "checkpoint_digest": None}):
        path = done.out / "result.json"
        path.unlink() if untrue is None else path.write_text(json.dumps(untrue))
        again = succeed(short_task, done.out)
        assert {key: again.result[key] for key in truth} == truth


def test_the_report_after_an_interruption_tells_of_the_whole_task(task, tmp_path):
    """Its time, its skipped images: what one process found, the next one tells."""
    images = build_dataset(tmp_path / "images", 8, captions="list")
    (images / "0002.png").write_bytes(b"no image")
    long = {"dataset.name": str(images), "train_args.num_train_steps": 60, "train_args.max_train_steps": 60}
    long |= {"train_args.batch_size": 1, "train_args.gradient_accumulation_steps": 1}
    job = start_job(changed(task, long), tmp_path / "out")
    job.until_step(2)
    job.signal(signal.SIGTERM)
    assert job.finish().code == 143
    stopped = read_json(job.out / "result.json")
    assert stopped["skipped_images"] == 1
    done = succeed(changed(task, long), job.out, env={"LOG_FORMAT": "json"})
    assert done.result["resumed_from_step"] > 0 and done.result["skipped_images"] == 1
    page = " ".join(re.sub("<[^>]*>", " ", (done.out / "report.html").read_text()).split())
    assert "Skipped 1 image" in page and "0002.png" in page
    assert "in total for 60 steps" in page
    both = [result["seconds"]["train"] for result in (stopped, done.result)]
    shown = float(re.search(r" train ([0-9.]+) s ", page)[1])
    assert shown == pytest.approx(sum(both), rel=0.1, abs=0.1) and shown > both[1]
    assert [line["event"] for line in progress(done.out)].count("start") == 2
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["task_digest"] == done.manifest["task_digest"] == done.result["task_digest"]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)


def test_a_refused_folder_keeps_its_result_in_place_too(short_task, tmp_path):
    """Another task may not take over the unfinished slice of a chain in place, nor write beside it."""
    done = succeed(changed(short_task, {"train_args.num_train_steps": 1}), tmp_path / "out")
    job = done.out / ".job"
    job.mkdir()
    (job / "record.json").write_text(json.dumps({"task_digest": "another task's", "parent": None}))
    (job / "progress").write_bytes(b"whatever it had trained")
    before = snapshot(done.out)
    refused = run_job(short_task, done.out, "--checkpoint", done.out / "checkpoint")
    assert refused.code == 7 and "unfinished progress of another task" in refused.error
    assert snapshot(done.out) == before


def test_a_wrong_flag_is_told_in_the_format_of_the_log(tmp_path):
    command = [sys.executable, ENTRYPOINT, "--output-dir", tmp_path, "--no-such-flag"]
    environment = os.environ | {"LOG_FORMAT": "json"}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (line,) = [json.loads(line) for line in refused.stderr.splitlines()]
    assert (line["level"], line["code"], line["kind"]) == ("error", 2, "task") and refused.returncode == 2


def test_a_wrong_flag_is_recorded_like_any_failure(tmp_path):
    refused = run_job(None, tmp_path / "out", "--no-such-flag")
    assert refused.code == 2 and "--no-such-flag" in refused.error
    assert (refused.result["status"], refused.result["code"]) == ("failed", 2)
    assert refused.result["message"] == refused.error
    only_planned = run_job(None, tmp_path / "untouched", "--plan", "--no-such-flag")
    assert only_planned.code == 2 and not only_planned.out.exists()


def test_a_killed_task_ends_the_chain_with_its_code(tmp_path, monkeypatch):
    """137, as after any kill; Python alone would make it 247, which is in nobody's table."""
    killed = tmp_path / "killed.py"
    killed.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(task, "ENTRYPOINT", str(killed))
    # The same where this process can be forked.
    monkeypatch.setattr(task.train, "main", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert chain.run_task([], tmp_path, tmp_path / "001") == 137
