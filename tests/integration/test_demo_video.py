"""`make demo-video`: its base model is made, trained and adapted, in few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from engine.data.media.geometry import Frames, geometry
from engine.data.media.registry import MEDIA
from engine.task.task import Dataset
from tests.support.harness import changed, succeed

DEMO = Path(__file__).parents[2] / "examples" / "demo-video"
FEW = {"train_args.num_train_steps": 2, "train_args.max_train_steps": 2, "validation.num_inference_steps": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made"
    subprocess.run([sys.executable, DEMO / "make_base.py", folder], check=True, cwd=DEMO.parents[1])
    return folder


def task_of(name, made, **changes):
    task = json.loads((DEMO / f"{name}.json").read_text().replace("../../out/demo-video", str(made)))
    return changed(task, FEW | changes)


def test_the_vae_shows_what_it_has_encoded(made):
    vae = AutoencoderKLLTXVideo.from_pretrained(made / "base" / "vae")
    data = (made / "sunset" / "axe-up.mkv").read_bytes()
    medium = MEDIA["video"].make(Dataset(name="d"))
    assert medium.measure(data) == (64, 64, 9)
    view = geometry(
        (64, 64),
        target=(64, 64),
        center_crop=True,
        crop_words=(0, 0),
        flip=False,
        frames=Frames(tuple(range(9))),
    )
    pixels = torch.from_numpy(medium.render(data, view)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        shown = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    assert (shown - pixels).abs().mean() < 0.2 < (pixels - pixels.mean()).abs().mean()
    assert np.isfinite(shown.numpy()).all()


def test_held_out_clips_are_not_trained_on(made):
    held_out, trained = ({path.stem for path in (made / name).glob("*.mkv")} for name in ("sunset-heldout", "sunset"))
    assert held_out and not held_out & trained


def test_both_tasks_run(made, tmp_path):
    succeed(task_of("pretrain", made), made / "pretrained")
    succeed(task_of("task", made), tmp_path / "lora")
    assert {path.name for path in (tmp_path / "lora" / "validation").glob("*.mp4")} == {f"{i}.mp4" for i in range(4)}
