"""An output folder beside, in or above a dataset's folder: the dataset stays what it was."""

import json
import shutil

import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.folder.own_results import result_files
from engine.evaluation.drawings import Image, listing
from engine.results.output import preview
from engine.results.output.folder import Claim, JobRecord, OutputFolder
from tests.support.caption_folders import images, opened, write
from tests.support.datasets import picture

JOB = JobRecord("task", None)
MANIFEST = json.dumps({"files": {}, "digest": "d", "task_digest": "task", "global_step": 1, "parent": None})
PROGRESS = json.dumps({"event": "start", "step": 0, "loss": None, "eta_seconds": None}) + "\n"
PICTURES = listing([Image(prompt="a", seed=1, file="0.png")])
DONE = {"status": "done", "code": 0, "kind": "done", "global_step": 1, "checkpoint_digest": "d"}
HISTORY = "[1, 0.5, 0.1, 1.0]\n"


def start(out):
    """A job that is killed while it trains, or fails."""
    with OutputFolder.lock(out) as output:
        assert output.claim(JOB, in_place=False, overwrite=False) in (Claim.FRESH, Claim.CONTINUES)
        output.write("progress.jsonl", PROGRESS.encode())
        output.save_progress(b"")
        preview.renew(out, {"step-000001/0.png": output.store([picture(8)])}, {})
        assert (out / "preview" / "step-000001-0.png").exists()


def publish(out, *, whole=True):
    with OutputFolder.lock(out) as output:
        output.claim(JOB, in_place=False, overwrite=False)
        pictures = {"0.png": picture(7), "step-000001/0.png": picture(8), "prompts.json": PICTURES}
        output.publish(output.validation, pictures, last="prompts.json")
        output.write("report.html", b"<html>")
        if whole:
            files = {"manifest.json": MANIFEST.encode(), "without-0.png": picture(9), "history.jsonl": HISTORY.encode()}
            output.publish(output.checkpoint, files | {"steps/000001.safetensors": b""}, last="manifest.json")
            output.write_result(DONE)
            output.complete()


def fail(out):
    with OutputFolder.lock(out) as output:
        output.write_result(DONE | {"status": "failed", "code": 3})


DATASETS = {
    "images": {**images("a.png", "sub/b.png", "validation/c.png"), "a.txt": "a"},
    "metadata": {
        **images("a.png", "b.png"),
        "metadata.jsonl": '{"file_name": "a.png", "text": "a"}\n{"file_name": "b.png", "text": "b"}\n',
    },
    "table": {**images("i/a.png"), "rows.jsonl": '{"image": "i/a.png", "text": "a"}\n'},
    "repeated": images("10_sks dog/a.png", "1_other/b.png"),
}


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("place", ["", "..", "out", "deep/er", "sub", "10_sks dog"])
def test_the_dataset_stays_what_it_was(tmp_path, kind, place):
    folder = write(tmp_path / "above" / "data", DATASETS[kind])
    shutil.rmtree(folder / "validation", ignore_errors=True)
    before = opened(folder, tmp_path, trigger_word="x")
    for stage in (fail, start, lambda out: publish(out, whole=False), publish):
        stage(folder / place)
        said = []
        after = opened(folder, tmp_path, trigger_word="x", said=said)
        assert (after.fingerprint, len(after)) == (before.fingerprint, len(before)), stage
    told = [line for line in said if "files are results of earlier training jobs and not trained on" in line]
    assert len(told) == (place != ".."), said


@pytest.mark.parametrize("place", ["data", "."])
def test_a_folder_above_the_images_may_be_the_datasets_too(tmp_path, place):
    folder = write(tmp_path / "data", images("a.png"))
    before = opened(tmp_path / place, tmp_path / "x", trigger_word="x")
    publish(folder)
    assert opened(tmp_path / place, tmp_path / "x", trigger_word="x").fingerprint == before.fingerprint


def test_only_what_a_job_has_written_is_left_out(tmp_path):
    """Names alone say nothing."""
    files = images("checkpoint/a.png", "validation/b.png", "c/validation/d.png")
    others = {
        "checkpoint/manifest.json": "{}",
        "validation/prompts.json": '[{"file": 1}]',
        "result.json": "[1",
        "progress.jsonl": "null",
        "report.html": "",
        "c/validation/prompts.json": "[" * 100_000,
    }
    folder = write(tmp_path / "data", files | others)
    (folder / "link").mkdir()
    (folder / "link" / "result.json").symlink_to("/dev/zero")
    assert result_files(folder, [*sorted(files | others), "link/result.json"]) == []


def test_nothing_but_results_is_nothing_to_train_on(tmp_path):
    publish(tmp_path / "data")
    with pytest.raises(DatasetError, match="holds nothing to train on"):
        opened(tmp_path / "data", tmp_path, trigger_word="x")
