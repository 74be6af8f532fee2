"""Trackers of a real job: told of everything, and no part of the result."""

import json
import signal
import sys

import pytest

from tests.support.harness import ENTRYPOINT, assert_same, changed, run_job, start_job, succeed


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


def test_a_service_that_fails_is_a_warning_and_no_byte_changes(short_task, tmp_path):
    """TensorBoard's folder cannot be made: a file is there."""
    out = tmp_path / "tracked"
    out.mkdir()
    (out / "tensorboard").write_text("in the way")
    pytest.importorskip("tensorboard", reason="needs requirements-trackers.txt")
    finished = succeed(short_task, out, "--trackers", "tensorboard")
    (warning,) = [line for line in finished.result["warnings"] if "tracker" in line]
    assert warning.startswith("the tracker tensorboard failed (") and warning.endswith("the training is not affected")
    assert_same(finished.folders(), succeed(short_task, tmp_path / "plain").folders())


def test_tensorboard_has_each_step_once_through_an_interruption(task, tmp_path):
    """And the two folders are those of a task without it."""
    pytest.importorskip("tensorboard", reason="needs requirements-trackers.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    running = start_job(task, tmp_path / "out", "--trackers", "tensorboard")
    running.until_step(3)
    running.signal(signal.SIGTERM)
    assert running.finish().code == 143
    finished = succeed(task, tmp_path / "out", "--trackers", "tensorboard")
    found = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    found.Reload()
    history = [json.loads(line) for line in (finished.out / "checkpoint" / "history.jsonl").read_text().splitlines()]
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(loss)) for step, loss, *_ in history]
    assert found.Images("validation/0")[-1].encoded_image_string == (finished.out / "validation/0.png").read_bytes()


def test_a_tracker_that_is_not_known_is_refused(short_task, tmp_path):
    refused = run_job(short_task, tmp_path / "out", "--trackers", "tensorbord")
    assert refused.code == 2 and "expected some of tensorboard, wandb, mlflow, kubeflow" in refused.error
