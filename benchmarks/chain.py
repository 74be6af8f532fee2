"""A chain of short tasks beside the same tasks as jobs of their own: CPU time of all processes, and the same bytes.

    python -m benchmarks.chain --tasks 10 --steps 10 --images 8 --validation-images 1
    python -m benchmarks.chain --peer ../diffusers/examples/text_to_image/train_text_to_image_lora.py ...

`--steps` is the length of one task. Each program has a cache of its own, empty at first.

With `--peer` also as many runs of Diffusers' script. Each continues from the latest checkpoint, trains as many steps,
saves a checkpoint and the LoRA, and draws the validation images at its end; then the same without images, which this
program cannot be told. The script imports torchvision; where there is none, `--peer-path` names a folder with a
stand-in (docs/measurements/README.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import measuring
from benchmarks.bench_job import ROOT, add_workload_arguments, read_workload
from benchmarks.measuring import Measured
from benchmarks.peers import diffusers_script, environment
from benchmarks.workloads import Workload

PROGRAM: Final = (sys.executable, ROOT / "entrypoint.py")
_CHAIN: Final = "chain"
_SINGLE: Final = "single jobs"


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


def _peer(workload: Workload, folder: Path, args: argparse.Namespace) -> list[Measured]:
    """As many runs of Diffusers' script as there are tasks."""
    folder.mkdir()
    found = []
    for number in range(1, args.tasks + 1):
        peer = diffusers_script(
            replace(workload, steps=number * args.steps),
            folder,
            args.peer.resolve(),
            checkpointing_steps=args.steps,
            resume_from_checkpoint="latest",
        )
        found.append(succeed(peer.command, folder / "log.txt", environment(args.peer_path, args.device)))
    return found


def succeed(command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Measured:
    """Measure a command that must end with code 0; `env` has more environment variables."""
    measured = measuring.run(command, log=log, env=env)
    if measured.code != 0:
        raise SystemExit(f"it failed ({measured.code}):\n{log.read_text()[-2000:]}")
    return measured


def digest(folder: Path, number: int) -> str:
    """The digest of a task's checkpoint."""
    result = json.loads((folder / "out" / f"{number:03}" / "result.json").read_text())
    return str(result["checkpoint_digest"])


def _run_all(workload: Workload, scratch: Path, args: argparse.Namespace) -> Iterator[tuple[str, list[Measured]]]:
    """Run each program in turn; yield its name and what was measured of its processes."""
    folders = {name: scratch / name for name in (_CHAIN, _SINGLE)}
    for folder in folders.values():
        folder.mkdir()
    task = replace(workload, steps=args.steps * args.tasks).task()
    task["train_args"]["num_train_steps"] = args.steps
    path = scratch / "task.json"
    path.write_text(json.dumps(task))
    yield _CHAIN, [_chain(path, folders[_CHAIN], args.device)]
    if args.peer:
        yield "the peer", _peer(workload, scratch / "peer", args)
        without = replace(workload, validation_images=0)
        yield "the peer, no images", _peer(without, scratch / "peer without", args)
    yield _SINGLE, _single_jobs(path, folders[_SINGLE], args.device, tasks=args.tasks)
    same = all(digest(folders[_CHAIN], number) == digest(folders[_SINGLE], number) for number in range(args.tasks))
    print("the same checkpoints" if same else "OTHER CHECKPOINTS", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--peer", type=Path, help="Diffusers' train_text_to_image_lora.py")
    parser.add_argument("--peer-path", type=Path, help="a folder to import from first, for a torchvision stand-in")
    args = parser.parse_args()
    workload = read_workload(args)
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            chain: Measured | None = None
            for name, found in _run_all(workload, Path(scratch), args):
                cpu, wall = sum(one.cpu for one in found), sum(one.wall for one in found)
                chain = chain or found[0]
                print(
                    f"{name:20} {cpu:6.1f} s of CPU, {wall:6.1f} s of wall time; chain / {name}: "
                    f"{chain.cpu / cpu:.2f} of the CPU time, {chain.wall / wall:.2f} of the wall time",
                    flush=True,
                )


if __name__ == "__main__":
    main()
