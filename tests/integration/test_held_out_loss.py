"""The held-out loss in the whole program: the same however a training is cut, killed or shared, and no part of it."""

from __future__ import annotations

import io
import json
import signal
import zipfile

import pytest

from tests.support.harness import (
    WEIGHTS,
    assert_same,
    assert_whole,
    changed,
    folder_bytes,
    progress,
    run_chain,
    run_job,
    serving,
    slice_environment,
    start_job,
    succeed,
    together,
)
from tests.support.tiny import build_dataset

ROWS = "heldout.jsonl"
FRACTION = {"validation.dataset": {"fraction": 0.4}, "validation.every_n_steps": 3}
TEXT_ENCODER = {"train_args.train_text_encoder": True, "lora.dropout": 0.2, "mixed_precision": "bf16"}
SHORT = {"train_args.num_train_steps": 1, "train_args.max_train_steps": 3, "train_args.batch_size": 1}


@pytest.fixture(scope="module")
def sharing(task):
    """K = 4: 3 of 8 images are held out, of which two processes have two and one."""
    return changed(task, {**FRACTION, "train_args.gradient_accumulation_steps": 4, "train_args.batch_size": 1})


@pytest.fixture(scope="module")
def measured(sharing, tmp_path_factory):
    """A training in one go."""
    return succeed(sharing, tmp_path_factory.mktemp("measured") / "out")


def rows(finished):
    return [json.loads(line) for line in (finished.out / "checkpoint" / ROWS).read_text().splitlines()]


def trained(finished):
    return {name: (finished.out / "checkpoint" / name).read_bytes() for name in WEIGHTS}


@pytest.mark.parametrize("is_forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_split_anywhere(sharing, measured, tmp_path, is_forked):
    chain = run_chain(
        sharing,
        tmp_path,
        (2, 8),
        each=lambda index: slice_environment(tmp_path, index, is_forked=is_forked),
        changes=lambda index: {"dataloader_num_workers": index, "validation.dataset": {"fraction": 0.39}},
    )
    assert_same(chain[-1].weights(), measured.weights())
    assert [row["step"] for row in rows(measured)] == [0, 3, 6, 9, 10]
    # Besides those of the whole there is one where the chain was cut; 0.39 and 0.4 hold out the same three images.
    assert [row for row in rows(chain[-1]) if row["step"] != 2] == rows(measured)
    assert [row["step"] for row in rows(chain[0])] == [0, 2]
    assert {row["images"] for row in rows(measured)} == {3}
    assert len({row["loss"] for row in rows(measured)}) == 5
    told = [line for line in progress(measured.out) if line["event"] == "evaluation"]
    assert [(line["step"], line["heldout_loss"]) for line in told] == [
        (row["step"], row["loss"]) for row in rows(measured)
    ]
    assert measured.result["heldout_loss"] == rows(measured)[-1]["loss"]
    best = min(rows(measured), key=lambda row: row["loss"])["step"]
    assert measured.result["best_step"] == best
    assert f"best: step {best}" in (measured.out / "report.html").read_text()
    # What is held out is not trained on: another fraction is another training.
    other = changed(sharing, {"validation.dataset": {"fraction": 0.2}})
    refused = run_job(other, tmp_path / "refused", "--plan", "--checkpoint", chain[0].out / "checkpoint")
    assert refused.code == 5 and "fraction holds out is 3 in the checkpoint, 2 in this task" in refused.error


@pytest.mark.slow
def test_several_processes(sharing, measured, tmp_path):
    finished = succeed(sharing, tmp_path / "out", env={"PROCESSES": "2", "CACHE_DIR": str(tmp_path / "cache")})
    assert_same(finished.folders(), measured.folders())


@pytest.mark.parametrize(
    "signum, steps",
    [
        (signal.SIGKILL, (6,)),
        pytest.param(signal.SIGKILL, (0, 3, 9), marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, (0, 3, 6), marks=pytest.mark.slow),
    ],
)
def test_killed_and_gone_on_with(sharing, measured, tmp_path, signum, steps):
    """As soon as a measurement shows: what was not saved by then is measured again."""
    out, env = tmp_path / "out", {"SAVE_SECONDS": "0"}
    for step in steps:
        job = start_job(sharing, out, env=env)
        job.until(
            lambda step=step: any(line["event"] == "evaluation" and line["step"] >= step for line in progress(out)),
            f"the measurement of step {step}",
        )
        job.signal(signum)
        assert job.process.wait() in (-signum, 128 + signum, 0)
        assert_whole(out)
    finished = succeed(sharing, out, env=env)
    assert finished.result["resumed_from_step"] >= 1
    assert_same(finished.folders(), measured.folders())


@pytest.mark.parametrize("changes", [{}, pytest.param(TEXT_ENCODER, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["model", pytest.param("xl_model", marks=pytest.mark.slow)])
def test_measuring_changes_nothing_that_is_trained(task, whole, request, tmp_path, changes, kind):
    changes = changes | ({"model.name": str(request.getfixturevalue(kind))} if kind == "xl_model" else {})
    build_dataset(tmp_path / "held-out", 3, seed=5)
    own = changed(task, {"validation.every_n_steps": 5, "validation.dataset": {"name": str(tmp_path / "held-out")}})
    plain, finished = together(
        lambda: succeed(changed(task, changes), tmp_path / "plain") if changes else whole,
        lambda: succeed(changed(own, changes), tmp_path / "out"),
    )
    assert_same(finished.weights(), plain.weights())
    assert ROWS not in folder_bytes(plain.out / "checkpoint") and len(rows(finished)) == 3


def zipped(folder):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return data.getvalue()


@pytest.mark.slow
def test_the_same_images_from_anywhere_are_one_curve(task, tmp_path):
    """From a split or a URL; other images begin another curve, and the training goes on all the same."""
    root = tmp_path / "dataset"
    build_dataset(root / "train", 4)
    held_out = build_dataset(root / "validation", 2, seed=5)
    others = build_dataset(tmp_path / "others", 2, seed=6)
    task = changed(task, {**SHORT, "dataset.name": str(root)})
    with serving({"/x": zipped(held_out)}) as (address, _):
        sources = [{"split": "validation"}, {"url": f"{address}/x"}, {"name": str(others)}]
        chain = run_chain(
            task,
            tmp_path,
            (1, 1, 1),
            each=lambda _: {"ALLOW_PRIVATE_URLS": "1"},
            changes=lambda index: {"validation.dataset": sources[index]},
        )
    found = rows(chain[-1])
    assert [row["step"] for row in found] == [0, 1, 2, 2, 3]
    assert [len({row["curve"] for row in part}) for part in (found[:3], found[3:], found)] == [1, 1, 2]
    assert "it begins a new curve" in chain[2].stderr and "it begins a new curve" not in chain[1].stderr
    fingerprints = [one.manifest["heldout"]["fingerprint"] for one in chain]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert "3 measurements of other images or timesteps" in (chain[-1].out / "report.html").read_text()


class TestRefusals:
    @pytest.mark.parametrize(
        "given, code, message",
        [
            ({"split": "dev2"}, 3, "has no split 'dev2' (validation.dataset.split)"),
            ({"name": "./nowhere"}, 3, "validation.dataset.name is "),
            ({"fraction": 0.5, "split": "test"}, 2, "exactly one of name, url, split or fraction"),
        ],
    )
    def test_before_anything_is_loaded(self, task, tmp_path, given, code, message):
        finished = run_job(changed(task, {"validation.dataset": given}), tmp_path / "out", "--plan")
        assert finished.code == code and message in finished.error

    def test_nothing_can_be_read(self, task, tmp_path):
        folder = build_dataset(tmp_path / "held-out", 2)
        for path in folder.glob("*.png"):
            path.write_bytes(path.read_bytes()[:100])
        own = changed(task, {**SHORT, "validation.dataset": {"name": str(folder)}})
        finished = run_job(own, tmp_path / "out")
        assert finished.code == 3 and "validation.dataset: none of its 2 images is readable" in finished.error
