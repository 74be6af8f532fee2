"""A chain of short tasks beside the same tasks as jobs of their own: CPU time of all processes, and the same bytes.

    python -m benchmarks.chain --tasks 10 --steps 10 --images 8 --validation-images 1

`--steps` is the length of one task. Both have a cache of their own, empty at first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import measuring
from benchmarks.bench_job import ROOT, add_workload_arguments, read_workload
from benchmarks.measuring import Measured

PROGRAM: Final = (sys.executable, ROOT / "entrypoint.py")


def _chain(task: Path, folder: Path, device: str) -> Measured:
    flags = ["--device", device, "--cache-dir", folder / "cache"]
    command = [*PROGRAM, "chain", "--task", task, "--output", folder / "out", "--", *flags]
    return succeed(command, folder / "log.txt")


def _single_jobs(task: Path, folder: Path, device: str, *, tasks: int) -> list[Measured]:
    found = []
    for number in range(tasks):
        command = [*PROGRAM, "--task", task, "--output-dir", folder / "out" / f"{number:03}"]
        command += ["--device", device, "--cache-dir", folder / "cache"]
        if number:
            command += ["--checkpoint", folder / "out" / f"{number - 1:03}" / "checkpoint"]
        found.append(succeed(command, folder / "log.txt"))
    return found


def succeed(command: list[str | Path], log: Path) -> Measured:
    """Measure a command that must end with code 0."""
    measured = measuring.run(command, log=log)
    if measured.code != 0:
        raise SystemExit(f"it failed ({measured.code}):\n{log.read_text()[-2000:]}")
    return measured


def digest(folder: Path, number: int) -> str:
    """The digest of a task's checkpoint."""
    result = json.loads((folder / "out" / f"{number:03}" / "result.json").read_text())
    return str(result["checkpoint_digest"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--tasks", type=int, default=10)
    args = parser.parse_args()
    whole = replace(read_workload(args), steps=args.steps * args.tasks)
    task = whole.task()
    task["train_args"]["num_train_steps"] = args.steps
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            folders = [Path(scratch, name) for name in ("chain", "single")]
            for folder in folders:
                folder.mkdir()
            path = Path(scratch, "task.json")
            path.write_text(json.dumps(task))
            chain = _chain(path, folders[0], args.device)
            single = _single_jobs(path, folders[1], args.device, tasks=args.tasks)
            same = [digest(folders[0], number) == digest(folders[1], number) for number in range(args.tasks)]
        cpu, wall = sum(one.cpu for one in single), sum(one.wall for one in single)
        print(f"chain of {args.tasks} x {args.steps} steps: {chain.cpu:.1f} s of CPU, {chain.wall:.1f} s of wall time")
        print(f"as single jobs: {cpu:.1f} s of CPU, {wall:.1f} s of wall time")
        print(f"ratio: {chain.cpu / cpu:.2f} of the CPU time, {chain.wall / wall:.2f} of the wall time")
        print("the same checkpoints" if all(same) else "OTHER CHECKPOINTS", flush=True)


if __name__ == "__main__":
    main()
