"""Results checked by doing their work again: true ones, forged ones, broken ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.core.canonical_json import canonical_json
from engine.results.checkpoint import spelled
from tests.support.harness import ENTRYPOINT, PATIENCE, changed, clean_environment, run_chain, start_job, succeed


def run_verifier(result, task_file, scratch, *flags):
    """Verify a result in a process of its own, with the home and temporary files in `scratch`."""
    return subprocess.run(
        [sys.executable, str(ENTRYPOINT), "verify", str(result), "--task", str(task_file), *map(str, flags)],
        check=False,
        cwd=ENTRYPOINT.parent,
        env=clean_environment(scratch),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def verify(task, tmp_path_factory):
    """Run the verifier: its exit code, what it prints, and its last line of stderr."""
    scratch = tmp_path_factory.mktemp("verify")

    def run(result, task=task, *flags):
        path = scratch / "task.json"
        path.write_text(json.dumps(task))
        # Only what it trains again has an interpreter of its own, as `run_verifier`'s has, too.
        job = start_job(None, None, "verify", result, "--task", path, *flags)
        code = job.process.wait(timeout=PATIENCE)
        assert "Traceback" not in job.stderr, job.stderr
        return code, job.log.with_suffix(".out").read_text(), (job.stderr.splitlines() or [""])[-1]

    return run


def forge(result, target, changes):
    """A copy of a result with other files in its checkpoint, and a manifest that vouches for them."""
    shutil.copytree(result, target)
    folder = target / "checkpoint"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["digest"]
    for name, change in changes.items():
        data = change((folder / name).read_bytes() if (folder / name).exists() else b"")
        (folder / name).write_bytes(data)
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
    manifest["digest"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / "manifest.json").write_bytes(spelled("manifest.json", manifest))
    return target


def with_a_flipped_bit(data):
    tensors = load(data)
    name = sorted(tensors)[3]
    tensors[name].reshape(-1).view(np.uint32)[1] ^= 1
    return save(tensors)


def with_another_loss(data):
    rows = [json.loads(line) for line in data.splitlines()]
    rows[4][1] = float(np.nextafter(rows[4][1], 2))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_true_result_is_identical(verify, whole, tmp_path):
    true = shutil.copytree(whole.out, tmp_path / "true")
    (true / "validation" / "notes.txt").touch()
    code, said, _ = verify(true)
    assert code == 0
    assert said.startswith("identical: steps 1 to 10, ")
    assert "\nnot compared, not part of a result: validation/notes.txt\n" in said
    assert "the same environment according to both manifests" in said


def test_no_code_beside_the_task_is_run(whole, task, dataset, tmp_path):
    """By the job that the verifier runs again, or by its image workers."""
    strangers = tmp_path / "strangers"
    shutil.copytree(dataset, strangers / "images")
    own = changed(task, {"dataset.name": "images", "dataloader_num_workers": 1})
    (strangers / "task.json").write_text(json.dumps(own))
    for name in ("multiprocessing", "argparse", "json", "numpy", "torch", "sitecustomize", "engine"):
        (strangers / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    done = run_verifier(whole.out, strangers / "task.json", tmp_path, "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_one_bit_of_one_tensor(verify, whole, tmp_path):
    forged = forge(whole.out, tmp_path / "forged", {"state.safetensors": with_a_flipped_bit})
    code, said, _ = verify(forged)
    assert code == 1
    assert said.startswith("different: checkpoint/state.safetensors: tensor adapter.")
    assert "differs in 1 of " in said and "first at 1: " in said
    assert "so one of the two is wrong" in said


def test_an_end_that_was_not_reached(verify, task, tmp_path):
    """A client's loop ends the chain where FINISH is: a forged one is no smaller lie than a forged weight."""
    own = changed(task, {"train_args.num_train_steps": 1})
    true = succeed(own, tmp_path / "true")
    forged = forge(true.out, tmp_path / "forged", {"FINISH": lambda _: b""})
    code, said, _ = verify(forged, own)
    assert code == 1 and said.startswith("different: 'checkpoint/FINISH' is only in the result\n")
    assert "the result says: finished is True in the result, False in the re-run" in said
    (true.out / "checkpoint" / "FINISH").touch()  # beside, in no manifest
    code, said, _ = verify(true.out, own)
    assert code == 1 and said.startswith("different: 'checkpoint/FINISH' is only in the result\n")


@pytest.mark.slow
def test_a_result_of_another_length(verify, task, whole):
    code, said, _ = verify(whole.out, changed(task, {"train_args.num_train_steps": 1}))
    assert code == 1
    assert "the result says: global_step is 10 in the result, 1 in the re-run" in said
    assert "so it is of another task, or one of the two is wrong" in said


@pytest.mark.slow
def test_one_step_of_the_history(verify, whole, tmp_path):
    code, said, _ = verify(forge(whole.out, tmp_path / "forged", {"history.jsonl": with_another_loss}), *[])
    assert code == 1
    assert said.startswith("different: step 5: loss ")
    assert "first file: checkpoint/history.jsonl" in said


@pytest.mark.slow
def test_a_result_of_another_seed(verify, task, whole):
    code, said, _ = verify(whole.out, changed(task, {"seed": 8}), "--steps", "2")
    assert code == 1
    assert said.startswith("different: step 1: loss ")
    assert "the result says: seed is 7 in the result, 8 in the re-run" in said


@pytest.mark.slow
def test_a_slice_of_a_chain(verify, task, tmp_path):
    """All of it, its first steps, with the wrong parent, and with none."""
    first, second = run_chain(task, tmp_path, [4, 6])
    own = changed(task, {"train_args.num_train_steps": 6})
    parent = ("--checkpoint", first.out / "checkpoint")
    assert verify(second.out, own, *parent)[0] == 0
    code, said, _ = verify(second.out / "checkpoint", own, *parent, "--steps", "2")
    assert (code, said.splitlines()[0]) == (0, "identical: steps 5 to 6, only the history")
    code, _, error = verify(second.out, own)
    assert code == 2 and "but none is given; give its parent with --checkpoint" in error
    code, _, error = verify(second.out, own, "--checkpoint", second.out / "checkpoint")
    assert code == 2 and "the result continues the checkpoint" in error


@pytest.mark.slow
def test_a_picture_of_somebody_else(verify, whole, tmp_path):
    forged = forge(whole.out, tmp_path / "forged", {})
    picture = forged / "validation" / "0.png"
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    code, said, _ = verify(forged)
    assert code == 1 and said.startswith("different: validation/0.png: ")
    picture.unlink()
    picture.symlink_to(whole.out / "validation" / "0.png")
    code, said, _ = verify(forged)
    assert code == 1 and said.startswith("different: validation/0.png is missing from the result")


@pytest.mark.slow
def test_one_more_picture_than_was_drawn(verify, whole, tmp_path):
    forged = shutil.copytree(whole.out, tmp_path / "forged")
    shutil.copy(forged / "validation" / "0.png", forged / "validation" / "7.png")
    code, said, _ = verify(forged)
    assert code == 1 and said.startswith("different: 'validation/7.png' is only in the result\n")


@pytest.mark.slow
def test_the_rerun_ends_otherwise(verify, task, whole):
    code, _, error = verify(whole.out, changed(task, {"dataset.name": "/nowhere"}))
    assert code == 3 and error.startswith("error: the re-run failed: ")


BROKEN = {
    "nothing": shutil.rmtree,
    "no checkpoint": lambda out: shutil.rmtree(out / "checkpoint"),
    "a LoRA alone": lambda out: [
        path.unlink() for path in (out / "checkpoint").iterdir() if "pytorch" not in path.name
    ],
    "a flipped bit": lambda out: (out / "checkpoint" / "state.safetensors").write_bytes(
        with_a_flipped_bit((out / "checkpoint" / "state.safetensors").read_bytes())
    ),
    "a file for a folder": lambda out: [shutil.rmtree(out / "checkpoint"), (out / "checkpoint").write_text("x")],
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_result(verify, whole, tmp_path, what):
    shutil.copytree(whole.out, tmp_path / "out")
    BROKEN[what](tmp_path / "out")
    code, said, error = verify(tmp_path / "out")
    assert (code, said) == (5, "")
    assert error.startswith("error: ")


def test_histories_that_are_none(verify, whole, tmp_path):
    for index, history in enumerate((b"{}\n", b"[1, 2]\n", b"\xff", b'[1, 0.5, 0.1, 0.2, "x"]\n', b"[" * 9999)):
        forged = forge(whole.out, tmp_path / str(index), {"history.jsonl": lambda _, history=history: history})
        assert verify(forged)[0] == 5


@pytest.mark.parametrize("flags", [("--steps", "0"), ("--steps", "x"), ("--nonsense",)])
def test_wrong_flags(verify, whole, task, flags):
    assert verify(whole.out, task, *flags)[0] == 2


@pytest.mark.slow
def test_digests_are_recorded_at_the_same_steps_however_a_chain_is_cut(task, tmp_path):
    sizes = {"train_args.batch_size": 1, "train_args.gradient_accumulation_steps": 1}
    long = changed(task, {**sizes, "train_args.max_train_steps": 110})
    whole = succeed(changed(long, {"train_args.num_train_steps": 110}), tmp_path / "whole")
    chain = run_chain(long, tmp_path, [49, 50, 11])
    history = "checkpoint/history.jsonl"
    assert chain[-1].folders()[history] == whole.folders()[history]
    rows = [json.loads(line) for line in whole.folders()[history].splitlines()]
    assert [row[0] for row in rows if len(row) == 5] == [50, 100]
    assert len({row[4] for row in rows if len(row) == 5}) == 2
