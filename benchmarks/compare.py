"""This job and a peer's script on the same training, in turn (A B A B ...), as ratios.

    python -m benchmarks.compare --peer ../diffusers/examples/text_to_image/train_text_to_image_lora.py

The peer is Diffusers' text-to-image LoRA script, from a checkout that is an argument. It imports torchvision; where
there is none, `--peer-path` names a folder with a stand-in. Both train the same number of steps on the same images,
batch, precision and rank, and draw the same number of validation images at the end. Each run starts with empty caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import measuring
from benchmarks.bench_job import Result, add_workload_arguments, read_workload, run_job
from benchmarks.workloads import Workload

COMPARED = ("wall s", "cpu s", "peak rss MiB")


def run_peer(workload: Workload, folder: Path, *, script: Path, path: Path | None, device: str) -> Result:
    """One run of Diffusers' script."""
    folder.mkdir(parents=True)
    flags: dict[str, object] = {
        "pretrained_model_name_or_path": workload.model,
        "train_data_dir": workload.dataset,
        "cache_dir": folder / "cache",
        "output_dir": folder / "out",
        "resolution": workload.resolution,
        "train_batch_size": workload.batch_size,
        "max_train_steps": workload.steps,
        "learning_rate": workload.learning_rate,
        "lr_scheduler": "constant",
        "rank": workload.rank,
        "mixed_precision": workload.precision,
        "seed": workload.seed,
        "validation_prompt": "a red square",
        "num_validation_images": workload.validation_images,
        # Beyond the last epoch: images are drawn once, at the end, as the job does.
        "validation_epochs": 10**9,
        "checkpointing_steps": 10**9,
    }
    command: list[str | Path] = [sys.executable, script]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    if workload.center_crop:
        command.append("--center_crop")
    env = {"PYTHONPATH": str(path)} if path else {}
    if device == "cpu":
        env["ACCELERATE_USE_CPU"] = "true"
    # One thread, as the job takes.
    measured = measuring.run(command, log=folder / "log.txt", env=env | {"OMP_NUM_THREADS": "1"})
    if measured.code != 0:
        raise SystemExit(f"the peer failed ({measured.code}):\n{(folder / 'log.txt').read_text()[-2000:]}")
    return {"wall s": measured.wall, "cpu s": measured.cpu, "peak rss MiB": measured.peak_rss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--peer", type=Path, required=True, help="Diffusers' train_text_to_image_lora.py")
    parser.add_argument("--peer-path", type=Path, help="a folder to import from first, for a torchvision stand-in")
    args = parser.parse_args()
    workload = read_workload(args)
    own: list[Result] = []
    peer: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.runs):
            folder = Path(scratch) / str(number)
            own.append(run_job(workload, folder / "own", device=args.device, cache=folder / "cache"))
            peer.append(run_peer(workload, folder / "peer", script=args.peer, path=args.peer_path, device=args.device))
            print(f"run {number + 1}: {own[-1]['wall s']:.1f} s, the peer {peer[-1]['wall s']:.1f} s", flush=True)
    print(f"{'':14}{'this job':>12}{'the peer':>12}{'peer / job':>12}   (medians; of the ratios in brackets min, max)")
    for name in COMPARED:
        ratios = [b[name] / a[name] for a, b in zip(own, peer, strict=True)]
        ours, theirs = (statistics.median(row[name] for row in rows) for rows in (own, peer))
        print(
            f"{name:14}{ours:12.2f}{theirs:12.2f}{statistics.median(ratios):12.2f}   "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )
    if args.json:
        args.json.write_text(json.dumps({"own": own, "peer": peer}, indent=2) + "\n")


if __name__ == "__main__":
    main()
