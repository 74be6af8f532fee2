"""Short tasks run by a worker beside the same tasks as jobs of their own: CPU time of all processes, the same bytes.

    python -m benchmarks.worker --tasks 10 --steps 10 --images 8 --validation-images 1

The tasks differ in their seed. The worker and the jobs have a cache of their own each, empty at first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.bench_job import add_workload_arguments, read_workload
from benchmarks.chain import PROGRAM, digest, succeed
from benchmarks.measuring import Measured
from benchmarks.workloads import Workload


def _write_tasks(workload: Workload, folder: Path, *, tasks: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(tasks):
        (folder / f"{number:03}.json").write_text(json.dumps(replace(workload, seed=workload.seed + number).task()))
    return folder


def _by_worker(tasks: Path, folder: Path, device: str) -> Measured:
    command = [*PROGRAM, "worker", "--tasks", tasks, "--output", folder / "out", "--exit-when-empty"]
    return succeed([*command, "--", "--device", device, "--cache-dir", folder / "cache"], folder / "log.txt")


def _as_single_jobs(tasks: Path, folder: Path, device: str) -> list[Measured]:
    flags = ["--device", device, "--cache-dir", folder / "cache"]
    return [
        succeed([*PROGRAM, "--task", task, "--output-dir", folder / "out" / task.stem, *flags], folder / "log.txt")
        for task in sorted(tasks.glob("*.json"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--tasks", type=int, default=10)
    args = parser.parse_args()
    workload = read_workload(args)
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            folders = [Path(scratch, name) for name in ("worker", "single")]
            tasks = [_write_tasks(workload, folder / "tasks", tasks=args.tasks) for folder in folders]
            worker = _by_worker(tasks[0], folders[0], args.device)
            single = _as_single_jobs(tasks[1], folders[1], args.device)
            same = [digest(folders[0], number) == digest(folders[1], number) for number in range(args.tasks)]
        cpu, wall = sum(one.cpu for one in single), sum(one.wall for one in single)
        what = f"{args.tasks} tasks of {args.steps} steps by a worker"
        print(f"{what}: {worker.cpu:.1f} s of CPU, {worker.wall:.1f} s of wall time")
        print(f"as single jobs: {cpu:.1f} s of CPU, {wall:.1f} s of wall time")
        print(f"ratio: {worker.cpu / cpu:.2f} of the CPU time, {worker.wall / wall:.2f} of the wall time")
        print("the same checkpoints" if all(same) else "OTHER CHECKPOINTS", flush=True)


if __name__ == "__main__":
    main()
