"""Images of mixed shapes in aspect-ratio buckets: exact however it is cut, killed and shared out."""

from __future__ import annotations

import shutil

import diffusers
import pytest
import torch

from tests.support.harness import assert_same, changed, run_chain, run_job, slice_environment, start_job, succeed
from tests.support.tiny import build_dataset

SHAPES = ((160, 100), (100, 160), (128, 128), (300, 90), (260, 64), (64, 64))
STEPS = 6


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Eleven images of six shapes; both of 4 : 1 and one square are cut short."""
    folder = build_dataset(tmp_path_factory.mktemp("mixed") / "images", 11, sizes=SHAPES, captions="list")
    for name in ("0002.png", "0004.png", "0010.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture(scope="module")
def bucketed(task, mixed):
    """Six steps of 2 x 2 images."""
    changes = {
        "dataset.name": str(mixed),
        "transforms.buckets": True,
        "train_args.resolution": 128,
        "train_args.batch_size": 2,
        "train_args.num_train_steps": STEPS,
        "train_args.max_train_steps": STEPS,
    }
    return changed(task, changes)


@pytest.fixture(scope="module")
def in_one_go(bucketed, tmp_path_factory):
    return succeed(bucketed, tmp_path_factory.mktemp("bucketed") / "out")


def elsewhere(root, index):
    """Return a slice's environment: every other one has another cache, and two processes."""
    return {"PROCESSES": str(1 + index % 2)} | slice_environment(root, index, is_forked=True)


def test_split_shared_out_and_with_workers(bucketed, in_one_go, tmp_path):
    chain = run_chain(
        bucketed,
        tmp_path,
        [1, 2, 3],
        each=lambda index: elsewhere(tmp_path, index),
        changes=lambda index: {"dataloader_num_workers": index % 2},
    )
    assert_same(chain[-1].weights(), in_one_go.weights())
    assert in_one_go.result["skipped_images"] == 3
    assert chain[-1].result["finished"]


def test_the_lora_loads_and_acts(model, in_one_go):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", height=64, width=128, num_inference_steps=2, generator=generator).images[0]

    without = draw()
    pipe.load_lora_weights(str(in_one_go.out / "checkpoint"))
    assert without.size == (128, 64) and draw().tobytes() != without.tobytes()


def test_a_plan_lists_the_buckets(bucketed, tmp_path):
    finished = succeed(bucketed, tmp_path / "out", "--plan")
    lines = finished.stdout.splitlines()
    assert "buckets        128 x 128: 7, 192 x 64: 2, 256 x 64: 2 images" in lines
    assert any(line.startswith("cropped ") for line in lines)


def test_what_cannot_be_is_refused(bucketed, in_one_go, tmp_path):
    small = run_job(changed(bucketed, {"train_args.resolution": 72}), tmp_path / "small", "--plan")
    assert small.code == 2 and "resolution is 72" in small.error and "try 128" in small.error
    parent = in_one_go.out / "checkpoint"
    square = changed(bucketed, {"transforms.buckets": False})
    other = run_job(square, tmp_path / "square", "--plan", "--checkpoint", parent)
    assert other.code == 5 and "buckets is True" in other.error and "at its default in this task" in other.error


@pytest.mark.slow
def test_killed_and_begun_again(bucketed, in_one_go, tmp_path):
    job = start_job(bucketed, tmp_path / "out", env={"SAVE_SECONDS": "0"})
    job.until_step(2)
    job.process.kill()
    job.process.wait()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    finished = succeed(bucketed, tmp_path / "out", env={"CACHE_DIR": str(tmp_path / "cache")})
    assert_same(finished.folders(), in_one_go.folders())


@pytest.mark.slow
def test_split_xl(bucketed, xl_model, tmp_path):
    task = changed(bucketed, {"model.name": str(xl_model), "lora.dropout": 0.1})
    whole = succeed(task, tmp_path / "whole")
    chain = run_chain(task, tmp_path, [1, 2, 3], each=lambda index: elsewhere(tmp_path, index))
    assert_same(chain[-1].weights(), whole.weights())
