"""The program for a GPU: it ends in time, keeps what it has, and its table can be pasted."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import Parts
from benchmarks.gpu_report import Results, write

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    **{"gpus": 1, "gpu": "a GPU", "driver": "1", "cuda": "13", "cores": 16, "python": "3.12"},
    **{"packages": {"torch": "2.13"}, "matrix product TFLOP/s": 800.0},
}


def row(speed, *, deterministic=True, ending="done", batch=1):
    found = {
        "images/s after the first step": speed,
        "denoiser TFLOP/s": speed * 1.71,
        "predicted memory MiB": 900.0,
        "peak memory by itself MiB": 1000.0,
    }
    facts = {"model": "sd15", "resolution": 512, "batch": batch, "steps": 1, "deterministic": deterministic}
    return {**facts, "ending": ending, "found": found if ending == "done" else {}}


def written(results, folder):
    write(results, folder)
    return (folder / "table.md").read_text(), json.loads((folder / "results.json").read_text())


def test_the_table_compares_with_determinism_off_and_with_the_prediction(tmp_path):
    rows = [row(45.0), row(50.0, deterministic=False), row(0, ending="no time", batch=16)]
    text, kept = written(Results(is_rehearsal=False, machine=MACHINE, rows=rows), tmp_path)
    assert "| sd15, 512², batch 1 | 45.0 | 50.0 | 10% | 10% | 50 |" in text
    assert "| sd15, 512², batch 1 | 900 | 1000 | 0.90 |" in text
    assert "| sd15, 512², batch 16 | no time | | | | 100 |" in text
    assert kept["rows"] == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "table.md"]


def test_a_failed_test_is_named_and_counts_as_a_failure(tmp_path):
    tests = [{"test": "one", "outcome": "passed"}, {"test": "two", "outcome": "failed"}]
    results = Results(is_rehearsal=False, machine=MACHINE, tests=tests, tests_ending="no time")
    text, _ = written(results, tmp_path)
    assert "1 failed, 1 passed (no time for the others)" in text
    assert "- failed: `two`" in text
    assert results.has_failed
    assert not Results(is_rehearsal=False, tests=tests[:1], tests_ending="no time").has_failed


@pytest.mark.parametrize("most, seconds", [(0.5, 100), (100, 0.5)])
def test_a_part_that_takes_too_long_is_ended_with_its_processes(tmp_path, most, seconds):
    parts = Parts(seconds=seconds, log=tmp_path / "log.txt")
    started = time.monotonic()
    process = parts.start(["sh", "-c", "sleep 50 & echo $!; wait"])
    assert parts.finish(process, most=most) == "no time"
    assert time.monotonic() - started < 10
    child = Path("/proc", (tmp_path / "log.txt").read_text().split()[-1], "stat")
    while child.exists() and ") Z " not in child.read_text():
        assert time.monotonic() - started < 20
        time.sleep(0.01)


def test_how_a_part_ended(tmp_path):
    parts = Parts(seconds=100, log=tmp_path / "log.txt")
    assert [parts.finish(parts.start(["sh", "-c", f"exit {code}"]), most=50) for code in (0, 3)] == ["done", "failed"]


@pytest.mark.slow
def test_a_rehearsal_with_too_little_time_keeps_what_it_has(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--seconds", "45"]
    command += ["--out", tmp_path / "out", "--work", tmp_path / "work"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert kept["machine"]["packages"]["torch"]
    assert "no time" in {kept["tests_ending"], *(part["ending"] for part in kept["rows"])}
