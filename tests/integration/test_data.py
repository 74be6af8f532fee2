"""Data as people have it, through the whole program: exact in chains, and said in `--plan`."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from PIL import Image

from tests.support.harness import (
    assert_same,
    changed,
    run_chain,
    run_job,
    serving,
    slice_environment,
    succeed,
    together,
)
from tests.support.tiny import build_dataset

OPTIONS = {
    "dataset.trigger_word": "sks",
    "dataset.caption_dropout": 0.2,
    "dataset.shuffle_tags": True,
    "dataset.keep_tokens": 1,
    "dataset.repeats": 2,
    "train_args.min_timestep": 20,
    "train_args.timestep_bias": {"strategy": "later", "multiplier": 3.0},
    "train_args.loss_type": "huber",
}
V_OPTIONS = {"train_args.prediction_type": "v_prediction", "train_args.zero_terminal_snr": True}


@pytest.fixture(scope="module")
def artists_folder(tmp_path_factory):
    """kohya's layout: side-cars with tags, and a folder whose images have none."""
    root = tmp_path_factory.mktemp("artist")
    build_dataset(root / "3_sks dog", 3)
    build_dataset(root / "1_style", 2, seed=1)
    for folder in root.iterdir():
        (folder / "metadata.jsonl").unlink()
    for image in (root / "3_sks dog").glob("*.png"):
        image.with_suffix(".txt").write_text(f"\ufeffa dog, red, green, blue {image.stem}\nanother, caption, of it")
    return root


def zipped(folder):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return data.getvalue()


@pytest.mark.parametrize("is_forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_chain_with_every_option_is_one_run_of_the_archive(task, artists_folder, tmp_path, is_forked):
    task = changed(task, {"train_args.max_train_steps": 5, "train_args.num_train_steps": 5, **OPTIONS, **V_OPTIONS})
    local = changed(task, {"dataset.name": str(artists_folder)})
    with serving({"/x": zipped(artists_folder)}) as (address, _):
        fetched = changed(task, {"dataset.name": None, "dataset.url": f"{address}/x"})
        whole, chain = together(
            lambda: succeed(fetched, tmp_path / "whole", env={"ALLOW_PRIVATE_URLS": "1"}),
            lambda: run_chain(
                local,
                tmp_path,
                (2, 1, 2),
                each=lambda i: slice_environment(tmp_path, i, is_forked=is_forked),
                changes=lambda i: {"dataloader_num_workers": i % 2},
            ),
        )
    assert_same(chain[-1].weights(), whole.weights())
    assert whole.manifest["dataset"] == chain[-1].manifest["dataset"]
    assert whole.result["skipped_images"] == 0


def test_the_plan_tells_what_the_dataset_is_like(task, artists_folder, tmp_path):
    task = changed(task, {"dataset.name": str(artists_folder), "dataset.trigger_word": "sks"})
    plan = succeed(task, tmp_path / "out", "--plan").stdout
    assert "5 images, 11 visits an epoch" in plan
    assert "captions       2 from the folder's name, 3 from a .txt file beside the image" in plan
    for word in ("tokens ", "sizes ", "duplicates     none", "unreadable     none"):
        assert word in plan


def test_images_alone_end_with_advice(task, artists_folder, tmp_path):
    folder = build_dataset(tmp_path / "alone", 2)
    (folder / "metadata.jsonl").unlink()
    finished = run_job(changed(task, {"dataset.name": str(folder)}), tmp_path / "out")
    assert finished.code == 3 and "dataset.default_caption or dataset.trigger_word" in finished.error
    (folder / "0000.txt").write_bytes("grün".encode("latin-1"))
    finished = run_job(changed(task, {"dataset.name": str(folder)}), tmp_path / "out")
    assert finished.code == 3 and "0000.txt (it is not UTF-8: byte 0xfc at 2)" in finished.error


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_args.zero_terminal_snr": True}, "zero_terminal_snr needs prediction_type v_prediction"),
        ({"train_args.max_timestep": 2000}, "<= 1000, the model"),
    ],
)
def test_noise_that_the_model_cannot_have_is_refused_by_the_plan(task, tmp_path, change, message):
    finished = run_job(changed(task, change), tmp_path / "out", "--plan")
    assert finished.code == 2 and message in finished.error


def test_masks_decide_what_is_learned_and_stay_exact(short_task, tmp_path):
    results = []
    for index, colour in enumerate(((0, 0, 0), (250, 10, 90))):
        folder = tmp_path / f"images-{index}"
        folder.mkdir()
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "mask": "m.png"}\n')
        mask = Image.new("L", (64, 64), 255 * index)
        mask.save(folder / "m.png")
        Image.new("RGB", (64, 64), colour).save(folder / "a.png")
        task = changed(short_task, {"dataset": {"name": str(folder), "mask_column": "mask"}})
        results.append(succeed(task, tmp_path / f"out-{index}"))
    black, white = (read_history(one.out) for one in results)
    assert [loss for _, loss, *_ in black] == [0.0, 0.0]  # all masked out: nothing is an error
    assert all(loss > 0.1 for _, loss, *_ in white)
    chain = run_chain(task, tmp_path / "chain", (1, 1))
    assert_same(chain[-1].weights(), results[1].weights())


def read_history(out):
    return [json.loads(line) for line in (out / "checkpoint" / "history.jsonl").read_text().splitlines()]
