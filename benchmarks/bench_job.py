"""The whole job by phase, as an operator pays for it: start, load, encode, first step, steps, validation, save.

    python -m benchmarks.bench_job --model tiny --device cpu --runs 3
    python -m benchmarks.bench_job --model sd15 --resolution 512 --precision bf16 --batch-size 16 --device cuda

Every run is the real program in a process of its own, with an empty cache unless `--warm`. Prints a table of the
medians and, with `--json`, writes all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import measuring, workloads
from benchmarks.measuring import Measured
from benchmarks.workloads import Workload
from engine.job.memory import predict
from engine.job.memory.decisions import beside_encoders
from engine.job.prepare import prepare, read_task
from engine.task.settings import read_flags, read_settings

ROOT = Path(__file__).resolve().parents[1]
UNDETERMINED: Final = ROOT / "benchmarks/undetermined.py"
"""The program without torch's deterministic mode."""
OUTPUT: Final = "out"
"""The folder of a program's results, in the folder of its run."""
Result = dict[str, Any]
DENOISER_TFLOP: Final = {("sd15", 512): 0.80 + 0.91, ("sdxl", 1024): 6.8 + 7.3}
"""Of an image, forward and backward through the denoiser, which is all that a step needs of what is encoded already."""


def run_job(
    workload: Workload,
    folder: Path,
    *,
    device: str,
    cache: Path,
    program: Sequence[str | Path] = (sys.executable, ROOT / "entrypoint.py"),
    until: str | None = None,
) -> Result:
    """One run of the program: what it measured of itself, and what was seen from outside."""
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(workload.task()))
    out = folder / OUTPUT
    command = [*program, "--task", folder / "task.json", "--output-dir", out]
    command += ["--cache-dir", cache, "--device", device]
    log = out / "progress.jsonl"
    # A line of another event follows within two seconds where the last step has none of its own.
    last = f'"step": {workload.steps},'
    watch = {"first step": lambda: _shows(log, '"event": "step"'), "last step": lambda: _shows(log, last)}
    measured = measuring.run(command, log=folder / "log.txt", watch=watch, until=until)
    if measured.code != 0:
        raise SystemExit(f"the job failed ({measured.code}):\n{(folder / 'log.txt').read_text()[-2000:]}")
    if until:
        return parts_of(measured, workload)
    result = json.loads((out / "result.json").read_text())
    seconds = result["seconds"]
    predicted = predicted_bytes(folder / "task.json", device)
    return {
        **{f"{name} s": value for name, value in seconds.items()},
        "outside the phases s": measured.wall - sum(seconds.values()),
        "steps/s": workload.steps / seconds["train"],
        "images/s": workload.steps * workload.batch_size / seconds["train"],
        "images/s after the first step": images_per_second(log, workload),
        **parts_of(measured, workload),
        "peak memory by itself MiB": result["peak_memory_bytes"] / 2**20,
        "predicted memory MiB": predicted / 2**20 if predicted else None,
    }


def images_per_second(log: Path, workload: Workload) -> float | None:
    """Return the images per second after the first logged step, without what only the first steps pay for.

    Args:
        log: the job's `progress.jsonl`; its first line of a step is that of the first step.
        workload: what was trained.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first = next(line for line in lines if line["event"] == "step")
    last = next(line for line in lines if line["event"] == "phase" and line["step"] == workload.steps)
    seconds = (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()
    steps = workload.steps - first["step"]
    return steps * workload.batch_size / seconds if steps and seconds else None


def predicted_bytes(task_file: Path, device: str) -> int | None:
    """Return the predicted peak of device memory of a task, without gradient checkpointing; None if unknown."""
    flags = ["--task", str(task_file), "--device", device, "--cache-dir", str(task_file.parent / "cache-of-plan")]
    settings = read_settings(read_flags(flags), {})
    job = prepare(settings, read_task(settings), weights=False, say=lambda *_: None)
    found = predict(job.base, job.task, recompute=False, device=device)
    if found is None or device == "cpu":
        return found.peak if found else None
    return max(found.peak, beside_encoders(found))  # a job may encode while it trains


def parts_of(measured: Measured, workload: Workload) -> Result:
    """A run of any trainer, as seen from outside; needs the moments `first step` and `last step`."""
    first, last = measured.moments["first step"], measured.moments["last step"]
    further = (last.cpu - first.cpu) / (workload.steps - 1) if workload.steps > 1 else None
    return {
        "until the first step s": first.wall,
        "wall s": measured.wall,
        "wall s of a further step": (last.wall - first.wall) / (workload.steps - 1) if workload.steps > 1 else None,
        "cpu s": measured.cpu,
        "cpu s until the first step": first.cpu,
        "cpu s of a further step": further,
        "cpu s after the last step": measured.cpu - last.cpu,
        "peak rss MiB": measured.peak_rss / 2**20,
        "peak anonymous MiB": measured.peak_anonymous / 2**20,
    }


def _shows(log: Path, words: str) -> bool:
    try:
        return words in log.read_text()
    except OSError:
        return False


def medians(rows: list[Result]) -> Result:
    """Of each figure that all runs have."""
    names = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in names}


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, for every benchmark of whole jobs."""
    parser.add_argument("--model", default="tiny", help=f"{', '.join(workloads.MODELS)}, or a Diffusers folder")
    parser.add_argument("--full", action="store_true", help="train the whole denoiser, not a LoRA")
    parser.add_argument("--ema", action="store_true", help=f"average the weights, decay {workloads.EMA_DECAY}")
    parser.add_argument("--dataset", type=Path, help="an imagefolder in place of `--images` smooth patterns")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--lr-scheduler", choices=["constant", "cosine", "linear"], default="constant")
    parser.add_argument("--lr-warmup-steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--random-crop", action="store_true", help="every visit is encoded afresh")
    parser.add_argument("--validation-images", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="where models and images are kept")
    parser.add_argument("--json", type=Path, help="write everything measured there")


def read_workload(args: argparse.Namespace) -> Workload:
    """The workload that the command line asks for, its files in place."""
    dataset = args.dataset or workloads.build_images(args.work, args.images, args.resolution)
    return Workload(
        model=workloads.build_model(args.work, args.model, args.resolution),
        dataset=dataset.resolve(),
        steps=args.steps,
        batch_size=args.batch_size,
        resolution=args.resolution,
        precision=args.precision,
        center_crop=not args.random_crop,
        is_whole_model=args.full,
        has_ema=args.ema,
        learning_rate=args.learning_rate,
        lr_scheduler=args.lr_scheduler,
        lr_warmup_steps=args.lr_warmup_steps,
        validation_images=args.validation_images,
        seed=args.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--warm", action="store_true", help="an unmeasured run fills the cache first")
    parser.add_argument("--cache", type=Path, help="a cache that several calls share; else each run has an empty one")
    parser.add_argument("--undetermined", action="store_true", help="without torch's deterministic mode")
    parser.add_argument(
        "--tflops", type=float, default=790, help="what the GPU can do in 16 bit: 790 for an H100 or H200"
    )
    args = parser.parse_args()
    workload = read_workload(args)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = args.cache or folder / "cache"
        if args.warm:
            run_job(replace(workload, steps=min(workload.steps, 10)), folder / "warm", device=args.device, cache=cache)
        program = (sys.executable, UNDETERMINED if args.undetermined else ROOT / "entrypoint.py")
        rows = []
        for number in range(args.runs):
            used = cache if args.warm or args.cache else folder / f"cache-{number}"
            rows.append(
                run_job(workload, folder / f"run-{number}", device=args.device, cache=used, program=program),
            )
    found = medians(rows)
    if (args.model, args.resolution) in DENOISER_TFLOP and args.device == "cuda":
        speed = found.get("images/s after the first step", found["images/s"])
        tflop = speed * DENOISER_TFLOP[args.model, args.resolution]
        found["denoiser TFLOP/s"] = round(tflop, 2)
        found[f"% of {args.tflops:g} TFLOP/s"] = round(100 * tflop / args.tflops, 2)
    for name, value in found.items():
        print(f"{name:28} {value:12.3f}")
    if args.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(workload).items()}
        report = {"workload": settings, "device": args.device, "warm": args.warm, "medians": found, "runs": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
