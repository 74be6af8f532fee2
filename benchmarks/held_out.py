"""The held-out loss of a trained denoiser, measured by this job whoever trained it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.bench_job import OUTPUT, ROOT
from benchmarks.workloads import Workload


def held_out_loss(workload: Workload, unet: Path, images: Path, folder: Path) -> float:
    """The loss before the first step of a job whose base model is the workload's, with another denoiser.

    Args:
        workload: its training is cut to one step; it is measured in float32.
        unet: the denoiser's folder, as Diffusers saves it.
        images: an imagefolder.
        folder: a new one, for the model and the job.
    """
    model = folder / "model"
    shutil.copytree(workload.model, model, ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(unet, model / "unet")
    measured = replace(
        workload, model=model, steps=1, batch_size=1, precision="no", is_whole_model=False, has_ema=False
    )
    task = measured.task()
    task["validation"] |= {"num_images": 1, "num_inference_steps": 1, "dataset": {"name": str(images.resolve())}}
    (folder / "task.json").write_text(json.dumps(task))
    command = [sys.executable, ROOT / "entrypoint.py", "--task", folder / "task.json", "--device", "cpu"]
    command += ["--output-dir", folder / OUTPUT, "--cache-dir", folder / "cache"]
    with (folder / "log.txt").open("wb") as log:
        subprocess.run([str(part) for part in command], stdout=log, stderr=log, check=True)
    first = json.loads((folder / OUTPUT / "checkpoint/heldout.jsonl").read_text().splitlines()[0])
    loss: float = first["loss"]
    return loss
