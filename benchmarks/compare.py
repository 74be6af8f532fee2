"""This job and a peer's program on the same whole task, in turn (A B A B ...), as ratios.

    python -m benchmarks.compare --peer ../diffusers/examples/text_to_image/train_text_to_image_lora.py
    python -m benchmarks.compare --peer ../diffusers/examples/text_to_image/train_text_to_image.py --full --ema
    python -m benchmarks.compare --peer ../stable-diffusion-task --peer-path FOLDER

The peer is one of Diffusers' text-to-image scripts, or the folder of a checkout of the reference trainer. They import
torchvision; where there is none, `--peer-path` names a folder with a stand-in (docs/measurements/README.md). All train
the same number of steps on the same images, batch, precision and rank, with one thread, and draw the same number of
validation images at the end, of 30 steps, whole models of 20. Each run starts with empty caches.

With `--held-out FOLDER`, this job then measures the held-out loss of both trained models on the images there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench_job import OUTPUT, Result, add_workload_arguments, read_workload, run_job
from benchmarks.held_out import held_out_loss
from benchmarks.peers import run_peer
from benchmarks.workloads import Workload

COMPARED = (
    "wall s",
    "wall s of a further step",
    "cpu s",
    "cpu s until the first step",
    "cpu s of a further step",
    "cpu s after the last step",
    "peak rss MiB",
    "peak anonymous MiB",
    "held-out loss",
)


def print_ratios(
    own: Sequence[Result], peer: Sequence[Result], names: Sequence[str] = ("this job", "the peer", "peer / job")
) -> None:
    """A line for each figure that both have; `names` of the two, and of their ratio."""
    print(f"{'':28}" + "".join(f"{name:>12}" for name in names) + "   (medians; of the ratios in brackets min, max)")
    for name in COMPARED:
        pairs = [(a[name], b[name]) for a, b in zip(own, peer, strict=True) if a.get(name) and b.get(name)]
        if not pairs:
            continue
        ratios = [b / a for a, b in pairs]
        ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        digits = 4 if theirs < 1 else 2
        print(
            f"{name:28}{ours:12.{digits}f}{theirs:12.{digits}f}{statistics.median(ratios):12.2f}   "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )


def run_both(workload: Workload, folder: Path, args: argparse.Namespace, until: str | None) -> tuple[Result, Result]:
    """One run of this job, then one of the peer."""
    own = run_job(workload, folder / "own", device=args.device, cache=folder / "cache", until=until)
    print(f"{folder.name}: {own['cpu s']:.1f} s of CPU", flush=True)
    peer = run_peer(workload, folder / "peer", program=args.peer, path=args.peer_path, device=args.device, until=until)
    print(f"{folder.name}: the peer {peer['cpu s']:.1f} s of CPU", flush=True)
    if args.held_out:
        trained = folder / "own" / OUTPUT / "checkpoint/unet", folder / "peer" / OUTPUT / "unet"
        for found, unet, name in zip((own, peer), trained, ("own", "peer"), strict=True):
            found["held-out loss"] = held_out_loss(workload, unet, args.held_out, folder / f"held-out-{name}")
    return own, peer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--peer", type=Path, required=True, help="train_text_to_image_lora.py, or a checkout's folder")
    parser.add_argument("--peer-path", type=Path, help="a folder to import from first, for a torchvision stand-in")
    parser.add_argument("--held-out", type=Path, help="an imagefolder for the held-out loss, with --full")
    parser.add_argument("--keep", type=Path, help="a new folder for what both write; else it is removed")
    parser.add_argument("--training-only", action="store_true", help="end both before they draw images")
    args = parser.parse_args()
    workload, until = read_workload(args), "last step" if args.training_only else None
    if args.held_out and (until or not workload.is_whole_model):
        parser.error("--held-out takes --full, and no --training-only")
    with contextlib.ExitStack() as stack:
        scratch = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pairs = []
        for number in range(args.runs):
            pairs.append(run_both(workload, scratch / f"run {number + 1}", args, until))
            if args.json:
                own, peer = zip(*pairs, strict=True)
                args.json.write_text(json.dumps({"own": own, "peer": peer}, indent=2) + "\n")
        if args.held_out:
            base = held_out_loss(workload, workload.model / "unet", args.held_out, scratch / "held-out-base")
            print(f"held-out loss before the training {base:.4f}")
    print_ratios(*zip(*pairs, strict=True))


if __name__ == "__main__":
    main()
