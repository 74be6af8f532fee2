"""A whole model of Stable Diffusion 1.5's real size: killed and continued, its bytes and its memory.

Random weights, 860 M parameters in the UNet; 15 GiB of memory and 30 GB of disk.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE, POLL, Running, progress, start_job

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
SAVING_MARGIN = 1.05
"""How much memory saving and publishing may take beside training."""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    work = tmp_path_factory.mktemp("real")
    code = (
        "from pathlib import Path; from benchmarks import workloads; "
        f"work = Path({str(work)!r}); workloads.build_model(work, 'sd15', 64); workloads.build_images(work, 2, 64)"
    )
    # In a process of its own: this one would keep some of the memory.
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return {
        "model": {"name": str(work / "sd15-64")},
        "dataset": {"name": str(work / "images-2-64")},
        "training_type": "full",
        "validation": {"prompt": "a red square", "num_images": 1, "num_inference_steps": 2},
        "train_args": {
            "batch_size": 1,
            "learning_rate": 1e-5,
            "scale_lr": False,
            "num_train_steps": STEPS,
            "max_train_steps": STEPS,
            "resolution": 64,
        },
        "seed": 0,
    }


def wait(job: Running) -> tuple[int, int]:
    """Wait for the job's end; return its peak memory at the last step and at the end, in KiB."""
    deadline = time.monotonic() + 6 * PATIENCE
    peak = trained = 0
    while job.process.poll() is None:
        assert time.monotonic() < deadline, job.stderr
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{job.process.pid}/status").read_text())
        peak = int(found[1]) if found else peak
        if not trained and any(line["event"] == "step" and line["step"] == STEPS for line in progress(job.out)):
            trained = peak
        time.sleep(POLL)
    assert job.process.returncode == 0, job.stderr
    return trained, peak


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_training_of_the_real_size_ends_with_the_same_bytes(task, tmp_path):
    whole = start_job(task, tmp_path / "whole", env={"SAVE_SECONDS": "100000"}, fresh=True)
    trained, peak = wait(whole)
    digest = whole.finish().result["checkpoint_digest"]
    shutil.rmtree(whole.out)
    assert trained
    assert peak <= SAVING_MARGIN * trained, f"{peak} KiB in the whole job, {trained} KiB in training"

    killed = start_job(task, tmp_path / "out", env={"SAVE_SECONDS": "0"}, fresh=True)
    deadline = time.monotonic() + 6 * PATIENCE
    while not (killed.out / ".job/progress").exists():
        assert killed.process.poll() is None and time.monotonic() < deadline, killed.stderr
        time.sleep(POLL)
    killed.process.kill()
    killed.process.wait()
    again = start_job(task, killed.out, env={"SAVE_SECONDS": "100000"}, fresh=True)
    trained, peak = wait(again)
    result = again.finish().result
    shutil.rmtree(again.out)
    assert result["resumed_from_step"] == 1
    assert result["checkpoint_digest"] == digest
    assert peak <= SAVING_MARGIN * trained, f"{peak} KiB in the continued job, {trained} KiB in training"
