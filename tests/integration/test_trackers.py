"""Trackers of a real job: told of everything, and no part of the result."""

import json
import sys

from tests.support.harness import ENTRYPOINT, assert_same, changed, run_job, succeed


def test_trackers_are_told_and_change_no_byte(short_task, tmp_path):
    """One that remembers, and one that always fails: a warning, and the same two folders."""
    task = changed(short_task, {"validation.every_n_steps": 1, "checkpoint_every_n_steps": 1})
    record = tmp_path / "record.json"
    finished = run_job(
        task,
        tmp_path / "tracked",
        prefix=[sys.executable, "-m", "tests.support.toy_trackers", str(record)],
        env={"PYTHONPATH": str(ENTRYPOINT.parent)},
    )
    assert finished.code == 0, finished.stderr
    told = json.loads(record.read_text())
    assert [line.partition("(step=")[0] for line in told] == [
        "('open', 0, 2)",
        "StepReport",
        "('lora', {})",
        "('images', {})",
        "StepReport",
        "'close'",
    ]
    warning = "the tracker failing failed (no route to the tracking server); the training is not affected"
    assert finished.result["warnings"].count(warning) == 1
    assert_same(finished.folders(), succeed(task, tmp_path / "plain").folders())
