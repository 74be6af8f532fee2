"""The benchmarks run, on the tiny model: what they print is a table, what they write is every figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--images", "2", "--steps", "2", "--runs", "1", "--validation-images", "1")


def run_benchmark(name, work, *flags):
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{name}",
        "--work",
        work / "work",
        "--json",
        work / "found.json",
        *flags,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((work / "found.json").read_text())


@pytest.mark.slow
def test_the_tax_of_determinism_is_measured(tmp_path):
    printed, found = run_benchmark("determinism", tmp_path, *TINY)
    assert "cpu s of a further step" in printed
    for side in ("on", "off"):
        (row,) = found[side]
        assert 0 < row["cpu s until the first step"] < row["cpu s"]
        assert 0 < row["cpu s after the last step"] < row["cpu s"]
        assert 50 < row["peak anonymous MiB"] <= row["peak rss MiB"]
        assert {"load s", "encode s", "train s", "validate s"} <= set(row)


@pytest.mark.slow
def test_the_scale_of_a_dataset_is_measured(tmp_path):
    printed, found = run_benchmark("scale", tmp_path, "--layouts", "parquet", "--rows", "50", "--steps", "1")
    assert "parquet, 50 rows" in printed
    assert all(row["plan: cpu s"] > 0 and row["download s"] > 0 for row in found["parquet, 50 rows"].values())


PEER = """
import sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
steps, epoch = int(flags["--max_train_steps"]), 0
for step in range(steps + 1):
    print(f"Steps: {step}/{steps} [00:00]", file=sys.stderr)
    sum(range(3_000_000))
sum(range(3_000_000))
if epoch % args.validation_epochs == 0:
    raise SystemExit("images are drawn twice")
"""


@pytest.mark.slow
def test_a_peer_is_compared(tmp_path):
    (tmp_path / "train.py").write_text(PEER)
    printed, found = run_benchmark("compare", tmp_path, "--peer", tmp_path / "train.py", *TINY)
    assert "peer / job" in printed
    assert found["peer"][0]["cpu s"] < found["own"][0]["cpu s"]
