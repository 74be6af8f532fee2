"""A folder of clips as people have them: `--plan` tells what each is, and the run trains on what it told."""

from __future__ import annotations

import pytest

from tests.support.forty_clips import build_forty_clips
from tests.support.harness import assert_same, changed, run_chain, run_job, succeed
from tests.support.tiny_ltx import build_ltx

RESAMPLED = {"dataset.frame_rate": 25, "transforms.buckets": True, "train_args.resolution": 128}
PLAN = [
    "dataset        {folder}: 40 clips",
    "clips          36 clips and 2 images, 5 to 24 frames; each visit shows 17 frames",
    "frame rates    25: 10, 24: 5, 30: 5, 23.976: 5, 50: 5, 12: 5, variable: 1",
    "codecs         AV1 6, FFV1 6, H.264 11, H.265 6, MPEG-4 1, VP9 6",
    "turned         3 as their files say: turned-180.mp4, turned-270.mp4, turned-90.mp4",
    "captions       40 from a .txt file beside the clip",
    "sizes          64 x 48 to 160 x 90, 3 are enlarged",
    "note: 2 clips cannot be read and are skipped: cut.mp4 (the file is cut: its end is missing), no-video.mp4 (it is "
    "neither a video (MP4, MOV, WebM, Matroska, AVI) nor an image",
    "note: 3 of 38 clips are skipped, with fewer frames than train_args.num_frames 17: photo.jpg (an image), short.mp4 "
    "(5 frames), still.png (an image)",
    "note: 26 of 36 clips have 12 to 50 frames a second where this model was trained on 25",
    "note: 1 clip has a variable frame rate, and the frames are shown at equal intervals",
    "note: of 35 clips the frames after the first ones are never shown by frame_extraction head: 29% of each",
]
PLAN_RESAMPLED = [
    "clips          36 clips and 2 images, 5 to 50 frames at 25 frames a second; each visit shows 1 to 17 frames",
    "buckets        128 x 128: 3, 128 x 128 x 9 frames: 4, 192 x 64 x 9 frames: 1, 128 x 128 x 17 frames: 27, "
    "192 x 64 x 17 frames: 5 clips",
    "note: 6 clips with fewer frames than train_args.num_frames 17 are trained with fewer: 5 with 9 frames, "
    "1 with 1 frame",
    "note: 10 of 36 clips of 30 to 50 frames a second are resampled to 25, which drops 17% to 50% of their frames",
    "note: 16 of 36 clips of 12 to 24.468 frames a second are resampled to 25: 4% to 52% of their frames are repeated",
    "note: of 36 clips the frames after the first ones are never shown by frame_extraction head: 15% to 80% of each",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_forty_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def task(folder, tmp_path_factory):
    """One epoch over all clips, a step each two."""
    return {
        "model": {"name": str(build_ltx(tmp_path_factory.mktemp("models") / "ltx"))},
        "dataset": {"name": str(folder)},
        "validation": {"num_images": 1, "num_inference_steps": 2},
        "train_args": {
            "num_frames": 17,
            "resolution": 64,
            "batch_size": 2,
            "num_train_steps": 20,
            "max_train_steps": 20,
            "lr_scheduler": {"lr_warmup_steps": 0},
        },
        "lora": {"rank": 2},
    }


def require_lines(said, wanted):
    lines = said.splitlines()
    assert [line for line in wanted if not any(one.startswith(line) for one in lines)] == [], said


@pytest.mark.parametrize("changes, wanted", [({}, PLAN), (RESAMPLED, PLAN_RESAMPLED)], ids=["as they are", "resampled"])
def test_a_plan_names_every_fact(task, folder, changes, wanted, tmp_path):
    planned = run_job(changed(task, changes), tmp_path / "out", "--plan")
    assert planned.code == 0, planned.stderr
    require_lines(planned.stdout, [line.format(folder=folder) for line in wanted])


def test_a_run_trains_on_what_the_plan_told(task, tmp_path):
    """An epoch shows each sample once, so it finds all that cannot be shown."""
    finished = succeed(task, tmp_path / "out")
    require_lines(finished.stderr, [line for line in PLAN if line.startswith("note")])
    result = finished.result
    assert result["skipped_images"] == 5
    for name in ("cut.mp4", "no-video.mp4", "photo.jpg", "short.mp4", "still.png"):
        assert f"skipping clip {name}: " in finished.stderr
    assert {line.removeprefix("note: ")[:20] for line in PLAN if line.startswith("note")} <= {
        warning[:20] for warning in result["warnings"]
    }
    assert result["clips"] == {
        "clips": 36,
        "images": 2,
        "unreadable": 2,
        "too_short": 3,
        "shortened": 0,
        "resampled": 0,
        "of_other_rate": 26,
        "variable_rate": 1,
        "turned": 3,
        "sped_up": 0,
        "frames": 847,
        "frames_never_shown": 245,
    }
    report = (tmp_path / "out/report.html").read_text()
    assert "moving squares, " in report


@pytest.mark.slow
@pytest.mark.parametrize("extraction", ["head", "chunk", "uniform", "random"])
def test_clips_and_images_in_a_chain_are_one_run(task, extraction, tmp_path):
    """More than an epoch, with an image now and then; a slice of the chain decodes in worker processes."""
    changes = RESAMPLED | {"dataset.frame_extraction": extraction, "transforms.random_flip": True}
    task = changed(task, changes | {"train_args.num_train_steps": 30, "train_args.max_train_steps": 30})
    whole = succeed(task, tmp_path / "whole")
    chain = run_chain(task, tmp_path, (7, 1, 22), changes=lambda i: {"dataloader_num_workers": i % 2})
    assert_same(chain[-1].weights(), whole.weights())
