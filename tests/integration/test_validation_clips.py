"""Validation clips: drawn as the task says, and again in Diffusers; shown by the report, without a trace elsewhere."""

from __future__ import annotations

import json
import re

import diffusers.utils
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from engine.data.media.video import decoding
from engine.evaluation.clip_file import encode_clip
from tests.support.clips import make_clip
from tests.support.harness import changed, read_json, succeed
from tests.support.pipelines import in_own_memory
from tests.support.tiny_ltx import build_ltx

ROWS = [
    {"prompt": "a fox runs", "width": 96, "num_frames": 17},
    {"prompt": "a still", "num_frames": 1, "seed": 4},
    {"prompt": "a fox rests", "guidance_scale": 1.0},
]


OWN, WITHOUT = ("validation", "0.mp4"), ("checkpoint", "without-0.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    build_ltx(folder / "model")
    (folder / "data").mkdir()
    for number in range(2):
        make_clip(folder / "data" / f"{number}.mp4", frames=9, size=(64, 64), first=100 * number, rate=12)
        (folder / "data" / f"{number}.txt").write_text(f"clip {number}\n")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def own(task, folder):
    steps = {f"train_args.{key}": 2 for key in ("num_train_steps", "max_train_steps")}
    validation = {
        "prompts_file": str(folder / "prompts.jsonl"),
        "num_images": 1,
        "num_inference_steps": 2,
        "every_n_steps": 1,
    }
    changes = {
        "model.name": str(folder / "model"),
        "dataset": {"name": str(folder / "data"), "frame_rate": 12},
        "validation": validation,
        "train_args.num_frames": 9,
        "train_args.batch_size": 1,
        "train_args.learning_rate": 0.02,
    }
    return changed(task, {**steps, **changes})


@pytest.fixture(scope="module")
def whole(own, tmp_path_factory):
    return succeed(own, tmp_path_factory.mktemp("whole") / "out")


def test_what_is_there(whole):
    validation = whole.out / "validation"
    told = read_json(validation / "prompts.json")
    assert [row["file"] for row in told] == ["0.mp4", "1.png", "2.mp4"]
    assert [(row["width"], row["height"], row["num_frames"], row["frame_rate"]) for row in told] == [
        (96, 64, 17, 12.0),
        (64, 64, 1, 12.0),
        (64, 64, 9, 12.0),
    ]
    assert {path.name for path in (validation / "step-000001").iterdir()} == {"0.mp4", "1.png", "2.mp4"}
    assert {"without-0.mp4", "without-1.png", "without-2.mp4"} < set(whole.manifest["files"])
    page = (whole.out / "report.html").read_text()
    assert page.count("<video ") == 4 and page.count('src="data:video/mp4;base64,') == 4
    assert page.count('alt="Validation clip 1 after step 1"') == 1


@pytest.mark.parametrize("index", range(len(ROWS)))
@pytest.mark.usefixtures("one_thread")
def test_a_clip_is_what_diffusers_draws(whole, folder, index):
    pipe = DiffusionPipeline.from_pretrained(folder / "model")
    in_own_memory(pipe)
    pipe.load_lora_weights(str(whole.out / "checkpoint"))
    pipe.vae.enable_tiling()
    row = read_json(whole.out / "validation" / "prompts.json")[index]
    options = {key: value for key, value in row.items() if key not in ("file", "seed")}
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    frames = pipe(**options, max_sequence_length=128, generator=generator).frames[0]
    drawn, path = np.stack([np.asarray(frame) for frame in frames]), whole.out / "validation" / row["file"]
    if path.suffix == ".mp4":
        assert encode_clip(drawn, row["frame_rate"]) == path.read_bytes()
        assert path.read_bytes() != (whole.out / "checkpoint" / f"without-{row['file']}").read_bytes()
    else:
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), drawn[0])


def test_the_model_cards_code_draws_the_first_clip(whole, folder, monkeypatch):
    saved = {}
    monkeypatch.setattr(diffusers.utils, "export_to_video", lambda frames, path, fps: saved.update({fps: frames}))
    (code,) = re.findall(r"```python\n(.*?)```", (whole.out / "checkpoint" / "README.md").read_text(), re.DOTALL)
    for placeholder, path in (("path/to/the/base/model", folder / "model"), ("path/to/this", whole.out / "checkpoint")):
        assert code.count(placeholder) == 1
        code = code.replace(placeholder, str(path)).replace(f"{path}/folder", str(path))
    exec(code, {})
    (found,) = saved.values()
    again = encode_clip(np.stack([np.asarray(frame) for frame in found]), 12.0)
    files = [again, *(whole.out.joinpath(*path).read_bytes() for path in (OWN, WITHOUT))]
    drawn, with_it, without = (np.stack(list(decoding.frames(data, range(17), None))).astype(int) for data in files)
    assert list(saved) == [12] and np.abs(drawn - with_it).mean() < np.abs(drawn - without).mean() / 2


def test_the_next_task_carries_the_clips_without_the_training(own, whole, tmp_path):
    longer = changed(own, {"train_args.max_train_steps": 3, "train_args.num_train_steps": 1})
    first = succeed(longer, tmp_path / "first")
    finished = succeed(longer, tmp_path / "out", "--checkpoint", first.out / "checkpoint")
    name = "without-0.mp4"
    assert (finished.out / "checkpoint" / name).read_bytes() == (whole.out / "checkpoint" / name).read_bytes()
    assert "without the LoRA" not in finished.stderr, "they are not drawn again"
    page = (finished.out / "report.html").read_text()
    assert page.count('alt="Validation clip 1 after step 1"') == 1, "from the report of the task before"
