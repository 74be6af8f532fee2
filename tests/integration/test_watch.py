"""A task that runs shows where it is: its report and preview, also when it is interrupted, until there is a result."""

from __future__ import annotations

import io
import signal

import pytest
from PIL import Image

from tests.support.harness import assert_same, changed, run_job, start_job, succeed


@pytest.fixture(scope="module")
def shown(task):
    return changed(
        task,
        {
            "validation.every_n_steps": 2,
            "validation.num_images": 2,
            "validation.num_inference_steps": 3,
            "checkpoint_every_n_steps": 2,
        },
    )


def test_a_task_is_seen_while_it_runs_and_when_it_is_interrupted(shown, tmp_path):
    out = tmp_path / "out"
    running = start_job(shown, out)
    running.until((out / "preview" / "step-000002-1.png").exists, "preview")
    running.until((out / "report.html").exists, "report")
    assert "Running: step" in (out / "report.html").read_text()
    running.signal(signal.SIGTERM)
    assert running.finish().code == 143
    names = {path.name for path in (out / "preview").iterdir()}
    assert {
        "step-000002-0.png",
        "step-000002-1.png",
        "step-000002.safetensors",
        "step-000002_webui.safetensors",
    } <= names
    for name in names:
        if name.endswith(".png"):
            Image.open(io.BytesIO((out / "preview" / name).read_bytes())).verify()
    page = (out / "report.html").read_text()
    assert (
        "Interrupted: step" in page
        and "--output-dir …/out" in page
        and str(tmp_path) not in page
        and "Running" not in page
    )
    finished = succeed(shown, out)
    assert not (out / "preview").exists()
    assert "Interrupted" not in (out / "report.html").read_text()
    assert_same(finished.folders(), succeed(shown, tmp_path / "plain").folders())


def test_a_task_that_fails_says_so_in_its_report(task, tmp_path):
    endless = changed(task, {"train_args.learning_rate": 1e30, "train_args.lr_scheduler": {"lr_scheduler": "constant"}})
    failed = run_job(endless, tmp_path / "out")
    assert failed.code == 8
    assert "Failed: step" in (tmp_path / "out" / "report.html").read_text()


def test_phases_are_named_as_they_begin(short_task, tmp_path):
    lines = succeed(short_task, tmp_path / "out").stderr.splitlines()
    named = ["finding the base model and the dataset", "importing the libraries", "loading the base model"]
    assert [line for line in lines if line in named] == named
