"""This job and a peer's program on the same whole task, in turn (A B A B ...), as ratios.

    python -m benchmarks.compare --peer ../diffusers/examples/text_to_image/train_text_to_image_lora.py
    python -m benchmarks.compare --peer ../stable-diffusion-task --peer-path FOLDER

The peer is Diffusers' text-to-image LoRA script, or the folder of a checkout of the reference trainer. Both import
torchvision; where there is none, `--peer-path` names a folder with a stand-in (docs/measurements/README.md). All train
the same number of steps on the same images, batch, precision and rank, with one thread, and draw the same number of
validation images of 30 steps at the end. Each run starts with empty caches.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import measuring
from benchmarks.bench_job import Result, add_workload_arguments, parts_of, read_workload, run_job
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
COMPARED = (
    "wall s",
    "cpu s",
    "cpu s until the first step",
    "cpu s of a further step",
    "cpu s after the last step",
    "peak rss MiB",
)
_EPOCH_IMAGES = "epoch % args.validation_epochs == 0"


@dataclass(frozen=True, slots=True)
class Peer:
    """How one run of another program is started, and what shows that its training is over."""

    command: Sequence[str | Path]
    trained: Path
    env: dict[str, str] = field(default_factory=dict)


def diffusers_script(workload: Workload, folder: Path, script: Path) -> Peer:
    """Diffusers' script, but for the images that it would draw a second time."""
    text = script.read_text()
    # It draws images after epoch 0 whatever `validation_epochs` is, and again at the end. One set is compared.
    if text.count(_EPOCH_IMAGES) != 1:
        raise SystemExit(f"{script} no longer says {_EPOCH_IMAGES!r} once: see to it that it draws images once")
    changed = folder / script.name
    changed.write_text(text.replace(_EPOCH_IMAGES, "False"))
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
        "validation_prompt": workload.prompt,
        "num_validation_images": workload.validation_images,
        "checkpointing_steps": 10**9,
    }
    command: list[str | Path] = [sys.executable, changed]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    if workload.center_crop:
        command.append("--center_crop")
    return Peer(command, folder / "out/pytorch_lora_weights.safetensors")


def reference_trainer(workload: Workload, folder: Path, checkout: Path) -> Peer:
    """The reference trainer's finetuning task, which takes the same task but for keys that it does not know."""
    task = workload.task() | {"checkpoint": None}
    task["lora"]["target_modules"] = ["to_k", "to_q", "to_v", "to_out.0"]
    (folder / "task.json").write_text(json.dumps(task))
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks/reference.py", checkout, folder / "task.json"]
    env = {
        "SD_DATA_DIR__MODELS__HUGGINGFACE": str(folder / "cache"),
        "SD_DATA_DIR__MODELS__EXTERNAL": str(folder / "external"),
    }
    return Peer([*command, folder / "out"], folder / "out/checkpoint/pytorch_lora_weights.safetensors", env)


def run_peer(
    workload: Workload, folder: Path, *, program: Path, path: Path | None, device: str, until: str | None = None
) -> Result:
    """One run of the peer."""
    folder.mkdir(parents=True)
    make = reference_trainer if program.is_dir() else diffusers_script
    peer = make(workload, folder, program.resolve())
    # One thread, as the job takes; and no look at the Hub, which would cost the peer time.
    env = peer.env | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if path:
        env["PYTHONPATH"] = str(path.resolve())
    if device == "cpu":
        env["ACCELERATE_USE_CPU"] = "true"
    log = folder / "log.txt"
    step = re.compile(rb"\b[1-9]\d*/%d \[" % workload.steps)  # as tqdm counts

    def has_step() -> bool:
        return any(step.search(line) for line in log.read_bytes().splitlines() if line.startswith(b"Steps:"))

    watch = {"first step": has_step, "trained": peer.trained.exists}
    measured = measuring.run(peer.command, log=log, env=env, watch=watch, until=until)
    if measured.code != 0:
        raise SystemExit(f"the peer failed ({measured.code}):\n{log.read_text()[-2000:]}")
    return parts_of(measured, workload)


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
        print(
            f"{name:28}{ours:12.2f}{theirs:12.2f}{statistics.median(ratios):12.2f}   "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_workload_arguments(parser)
    parser.add_argument("--peer", type=Path, required=True, help="train_text_to_image_lora.py, or a checkout's folder")
    parser.add_argument("--peer-path", type=Path, help="a folder to import from first, for a torchvision stand-in")
    parser.add_argument("--training-only", action="store_true", help="end both before they draw images")
    args = parser.parse_args()
    workload, until = read_workload(args), "trained" if args.training_only else None
    own: list[Result] = []
    peer: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.runs):
            folder = Path(scratch) / str(number)
            own.append(run_job(workload, folder / "own", device=args.device, cache=folder / "cache", until=until))
            print(f"run {number + 1}: {own[-1]['cpu s']:.1f} s of CPU", flush=True)
            peer.append(
                run_peer(
                    workload,
                    folder / "peer",
                    program=args.peer,
                    path=args.peer_path,
                    device=args.device,
                    until=until,
                )
            )
            print(f"run {number + 1}: the peer {peer[-1]['cpu s']:.1f} s of CPU", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"own": own, "peer": peer}, indent=2) + "\n")
    print_ratios(own, peer)


if __name__ == "__main__":
    main()
