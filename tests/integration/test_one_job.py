"""The files and lines of one job of ten steps: `make test-quick` runs these as its real training."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from tests.support.harness import folder_bytes, progress


def test_result(whole):
    result = whole.result
    assert {key: result[key] for key in ("status", "code", "kind", "finished")} == {
        "status": "done",
        "code": 0,
        "kind": "done",
        "finished": True,
    }
    assert (result["global_step"], result["steps_trained"], result["resumed_from_step"]) == (10, 10, 0)
    assert result["skipped_images"] == 0
    assert result["peak_memory_bytes"] > 50e6
    assert result["checkpoint_digest"] == whole.manifest["digest"]
    assert set(result["seconds"]) == {"start", "download", "load", "encode", "train", "validate", "publish"}
    assert result["device"] == whole.manifest["device"]
    assert result["task_digest"] == whole.manifest["task_digest"]
    assert result["peak_rss_bytes"] > 50e6
    assert [warning[:55] for warning in result["warnings"]] == [
        "the whole training shows each image 7.5 times on averag"
    ]
    assert result["started"] < result["ended"]
    first = whole.stderr.splitlines()[0]
    assert first.startswith(f"sd-lora-task {result['version']} ")
    assert first.endswith(f", task sha256:{result['task_digest']}")
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    assert "10 steps" in result["message"]


def test_progress(whole, task):
    lines = progress(whole.out)
    fields = {
        "event",
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "images_per_second",
        "eta_seconds",
        "time",
        "phase",
    }
    assert all(set(line) == fields for line in lines)
    assert (lines[0]["event"], lines[0]["phase"], lines[0]["step"]) == ("start", "start", 0)
    begun = [line["phase"] for line in lines if line["event"] in ("start", "phase")]
    # The second start: the libraries are imported after the job is found to be neither done nor refused.
    # On a CPU the windows of encodings grow: one step, four, the rest.
    assert begun == ["start", "download", "start", "load", *["encode", "train"] * 3, "validate", "publish"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    last = lines[-1]
    assert (last["event"], last["step"], last["eta_seconds"]) == ("end", 10, 0)
    assert 0 < last["loss"] < 10
    assert last["grad_norm"] > 0
    assert last["images_per_second"] > 0
    # Cosine after three steps of warm-up, at its last step.
    assert last["learning_rate"] == pytest.approx(1e-3 * 0.5 * (1 + np.cos(np.pi * 6 / 7)))


def test_manifest(whole):
    manifest = whole.manifest
    wanted = "files digest task_digest dataset base_model parent global_step versions device"
    assert set(manifest) >= set(wanted.split())
    files = folder_bytes(whole.out / "checkpoint")
    assert manifest["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "manifest.json"
    }
    assert {"fingerprint", "revision"} <= set(manifest["dataset"])
    assert {"identity", "revision"} <= set(manifest["base_model"])
    assert manifest["parent"] is None
    assert manifest["global_step"] == 10
    # Nothing says where or when it was made.
    text = json.dumps(manifest) + files["state.json"].decode()
    assert str(whole.out.parent) not in text
    assert "/tmp" not in text


def test_nothing_else_is_left(whole):
    assert sorted(path.name for path in whole.out.iterdir()) == [
        ".lock",
        "checkpoint",
        "progress.jsonl",
        "report.html",
        "result.json",
        "validation",
    ]


def test_no_noise(whole):
    """An operator's screen has this program's lines and nothing of its libraries."""
    text = whole.stderr.lower()
    for word in ("deprecat", "torchvision", "warn", "[transformers]", "[diffusers]", "futurewarning", "huggingface"):
        assert word not in text, whole.stderr
    assert len(whole.stderr.splitlines()) < 27
    assert whole.stdout == ""
