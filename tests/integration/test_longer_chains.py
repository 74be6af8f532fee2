"""Where a restart finds another world than the one it left: it is refused with both values, or told in the result."""

from __future__ import annotations

import io
import json
import signal
import tarfile

import pytest
import torch

from engine.core.canonical_json import canonical_json
from tests.integration.test_processes import torchrun
from tests.integration.test_verified_results import run_verifier
from tests.support.harness import changed, run_job, serving, snapshot, start_job, succeed

LONG = {"train_args.num_train_steps": 60, "train_args.max_train_steps": 60}
SLOWER = {"ATEN_CPU_CAPABILITY": "default"}
"""The same machine as another device: torch's kernels without vector instructions."""


def interrupted(task, out, step=5, **options):
    """A job that was stopped after this step, or a later one."""
    job = start_job(task, out, **options)
    job.until_step(step)
    job.signal(signal.SIGTERM)
    assert job.finish().code == 143
    return out


def packed(folder, leave_out=0):
    """A dataset's folder as a tar, without its last so many images."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        rows = (folder / "metadata.jsonl").read_text().splitlines()
        kept = rows[: len(rows) - leave_out]
        text = "".join(f"{row}\n" for row in kept).encode()
        entry = tarfile.TarInfo("metadata.jsonl")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
        for row in kept:
            tar.add(folder / json.loads(row)["file_name"], json.loads(row)["file_name"])
    return stream.getvalue()


@pytest.mark.slow
def test_other_data_behind_the_same_address(task, dataset, tmp_path):
    """Same task, same digest: what was trained on half of it is not gone on with."""
    answers = {"/data.tar": packed(dataset)}
    caches = [{"CACHE_DIR": str(tmp_path / name), "ALLOW_PRIVATE_URLS": "1"} for name in ("one", "two")]
    with serving(answers) as (address, _):
        own = changed(task, {"dataset.name": None, "dataset.url": f"{address}/data.tar", **LONG})
        out = interrupted(own, tmp_path / "out", env=caches[0])
        answers["/data.tar"] = packed(dataset, leave_out=1)
        (out / "progress.jsonl").unlink()  # each start of the same command gives signs of life
        before = snapshot(out)
        refused = run_job(own, out, env=caches[1])
    (out / "progress.jsonl").unlink()
    assert refused.code == 7 and "images or captions have changed since (8 rows then, 7 now)" in refused.error
    assert "begin anew" in refused.error and snapshot(out) == before


@pytest.mark.slow
def test_another_number_of_processes(short_task, tmp_path):
    """A finished result of K = 4 is none of K = 2."""
    done = succeed(short_task, tmp_path / "out", prefix=torchrun(2))
    refused = run_job(short_task, done.out)
    assert refused.code == 7
    assert "K, the number of processes times gradient_accumulation_steps, is 4 then, 2 now" in refused.error
    assert "nothing to do" in succeed(short_task, done.out, prefix=torchrun(2)).stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU is that other device")
def test_another_device_is_told_for_its_steps_and_nobody_is_accused(task, tmp_path):
    own = changed(task, LONG)
    out = interrupted(own, tmp_path / "out", env=SLOWER)
    went_on = succeed(own, out)
    assert "note: the steps before were trained on another device" in went_on.stderr
    first, second = went_on.manifest["origins"]
    assert first["from_step"] == 0 and 5 <= first["to_step"] == second["from_step"] < second["to_step"] == 60
    assert first["device"]["instructions"] == "DEFAULT" and second["device"] == went_on.manifest["device"]
    lineage = json.loads((out / "checkpoint" / "state.json").read_bytes())["lineage"]
    assert lineage[-1]["origins"] == went_on.manifest["origins"]
    (tmp_path / "task.json").write_bytes(canonical_json(own))
    done = run_verifier(out, tmp_path / "task.json", tmp_path)
    assert "one of the two is wrong" not in done.stdout
    assert f"another environment: steps 1 to {first['to_step']}: device.instructions is 'DEFAULT'" in done.stdout
    assert "look at" not in done.stderr


@pytest.mark.slow
def test_a_finished_training_is_made_longer_as_the_refusal_says(task, whole, tmp_path):
    out = succeed(task, tmp_path / "out").out
    longer = changed(task, {"train_args.num_train_steps": 12, "train_args.max_train_steps": 12})
    refused = run_job(longer, out)
    assert refused.code == 7 and f"to continue it from step 10, add --checkpoint {out}/checkpoint;" in refused.error
    answered = run_job(longer, out, "--checkpoint", out)
    assert answered.code == 5 and answered.error.endswith(f"--checkpoint {out}/checkpoint")
    went_on = succeed(longer, out, "--checkpoint", out / "checkpoint")
    assert (went_on.result["resumed_from_step"], went_on.result["global_step"]) == (10, 12)
