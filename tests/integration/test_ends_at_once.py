"""What is done already, or refused, ends before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import ENTRYPOINT, changed, clean_environment, snapshot

SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(ENTRYPOINT.parent)!r})
import entrypoint
code = entrypoint.main(sys.argv[1:], os.environ)
print(code, *sorted({{"torch", "diffusers", "transformers"}} & set(sys.modules)))
"""


@pytest.fixture
def end(tmp_path):
    """Run a task in an interpreter of its own: its exit code with what it imported, and what it said."""

    def end(task, out, *flags, **env):
        path = tmp_path / "task.json"
        path.write_text(json.dumps(task))
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "--task", path, "--output-dir", out, *flags],
            env={**clean_environment(tmp_path), **env},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split(), done.stderr

    return end


def test_a_result_that_is_there(end, task, whole):
    before = snapshot(whole.out)
    for flags in ((), ("--checkpoint", whole.out / "checkpoint")):
        found, said = end(task, whole.out, *flags)
        assert found == ["0"] and "nothing to do" in said
    assert snapshot(whole.out) == before


def test_another_jobs_result(end, task, whole):
    found, said = end(changed(task, {"seed": 8}), whole.out)
    assert found == ["7"] and "another job's result" in said


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_missing_gpu(end, short_task, tmp_path):
    found, said = end(short_task, tmp_path / "out", DEVICE="cuda")
    assert found == ["9"] and "no CUDA device is visible" in said
    assert json.loads((tmp_path / "out" / "result.json").read_bytes())["code"] == 9


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"dataset.name": "/nowhere"}, "3"),
        ({"model.name": "/nowhere"}, "4"),
        ({"checkpoint": "/nowhere"}, "5"),
        ({"validation.num_inference_steps": 1000}, "2"),
    ],
)
def test_a_task_that_does_not_fit(end, short_task, tmp_path, changes, code):
    assert end(changed(short_task, changes), tmp_path / "out")[0] == [code]
