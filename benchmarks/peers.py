"""Other trainers' programs, for benchmarks/compare.py: how each is started on a workload, and one run of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import measuring
from benchmarks.bench_job import OUTPUT, ROOT, Result, parts_of
from benchmarks.workloads import Workload

_EPOCH_IMAGES: Final = "epoch % args.validation_epochs == 0"


@dataclass(frozen=True, slots=True)
class Peer:
    """How one run of another program is started."""

    command: Sequence[str | Path]
    env: dict[str, str] = field(default_factory=dict)


def diffusers_script(workload: Workload, folder: Path, script: Path, **more: object) -> Peer:
    """Diffusers' script for a LoRA, or for a whole model, but for the images that it would draw a second time.

    Args:
        workload: what to train; without validation images the script draws none and does not load the model again.
        folder: holds the output folder and the cache; there already if the script continues.
        script: the script's file.
        more: further flags of the script, which take the place of those made from the workload.
    """
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
        "output_dir": folder / OUTPUT,
        "resolution": workload.resolution,
        "train_batch_size": workload.batch_size,
        "max_train_steps": workload.steps,
        "learning_rate": workload.learning_rate,
        "lr_scheduler": workload.lr_scheduler,
        "lr_warmup_steps": workload.lr_warmup_steps,
        "mixed_precision": workload.precision,
        "seed": workload.seed,
        "checkpointing_steps": 10**9,
    }
    if not workload.is_whole_model:
        flags["rank"] = workload.rank
        if workload.validation_images:
            flags |= {"validation_prompt": workload.prompt, "num_validation_images": workload.validation_images}
    command: list[str | Path] = [sys.executable, changed]
    for name, value in (flags | more).items():
        command += [f"--{name}", str(value)]
    if workload.is_whole_model and workload.validation_images:
        command += ["--validation_prompts", *[workload.prompt] * workload.validation_images]
    if workload.has_ema:
        command.append("--use_ema")
    if workload.center_crop:
        command.append("--center_crop")
    return Peer(command)


def reference_trainer(workload: Workload, folder: Path, checkout: Path) -> Peer:
    """The reference trainer's finetuning task, which takes the same task but for keys that it does not know."""
    if workload.is_whole_model:
        raise SystemExit("the reference trainer is compared by LoRAs only: leave out --full")
    task = workload.task() | {"checkpoint": None}
    task["lora"]["target_modules"] = ["to_k", "to_q", "to_v", "to_out.0"]
    (folder / "task.json").write_text(json.dumps(task))
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks/reference.py", checkout, folder / "task.json"]
    env = {
        "SD_DATA_DIR__MODELS__HUGGINGFACE": str(folder / "cache"),
        "SD_DATA_DIR__MODELS__EXTERNAL": str(folder / "external"),
    }
    return Peer([*command, folder / OUTPUT], env)


def environment(path: Path | None, device: str) -> dict[str, str]:
    """The variables that every peer is run with; `path` is a folder to import from first."""
    # One thread, as the job takes; and no look at the Hub, which would cost the peer time.
    found = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if path:
        found["PYTHONPATH"] = str(path.resolve())
    if device == "cpu":
        found["ACCELERATE_USE_CPU"] = "true"
    return found


def run_peer(
    workload: Workload, folder: Path, *, program: Path, path: Path | None, device: str, until: str | None = None
) -> Result:
    """One run of the peer."""
    folder.mkdir(parents=True)
    make = reference_trainer if program.is_dir() else diffusers_script
    peer = make(workload, folder, program.resolve())
    env = peer.env | environment(path, device)
    log = folder / "log.txt"

    def has_step(number: int) -> bool:
        lines = log.read_bytes().replace(b"\r", b"\n")  # as tqdm counts
        found = re.findall(rb"^Steps:.* (\d+)/%d \[" % workload.steps, lines, re.MULTILINE)
        return any(int(count) >= number for count in found)

    watch = {"first step": lambda: has_step(1), "last step": lambda: has_step(workload.steps)}
    measured = measuring.run(peer.command, log=log, env=env, watch=watch, until=until)
    if measured.code != 0:
        raise SystemExit(f"the peer failed ({measured.code}):\n{log.read_text()[-2000:]}")
    return parts_of(measured, workload)
