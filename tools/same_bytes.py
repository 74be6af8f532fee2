"""Compare two checkouts of this program: do they give the same bytes for the same tasks, and continue each other's?

    .venv/bin/python -m tools.same_bytes OLD [NEW] [--only NAME] [--ignore FILE …]

A table of small tasks is run by both on this machine, in the interpreter that runs this. Each task is cut in two: OLD
trains both halves, NEW both, and NEW the second half after OLD's first. All files of the two folders are compared, but
for what says which program made them. Ends with 1 where a byte differs. A task for a kind of model that OLD lacks
fails: choose others by --only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tests.support.clips import make_clip
from tests.support.tiny import build_dataset, build_sd, build_sdxl
from tests.support.tiny_cogvideox import build_cogvideox
from tests.support.tiny_hunyuan_video import build_hunyuan_video
from tests.support.tiny_ltx import build_ltx
from tests.support.tiny_wan import build_wan

ROOT: Final = Path(__file__).resolve().parents[1]
STEPS: Final = 4
# Keys of JSON files that name the program, the machine, or digests of files that do.
OF_THE_PROGRAM: Final = {"versions", "device", "digest", "parent", "files"}
ALL_LAYERS: Final = r".*(to_[kqv]|to_out\.0|conv1|conv_in|proj_in)"
BF16: Final = {"mixed_precision": "bf16"}
TASKS: Final[dict[str, dict[str, Any]]] = {
    "sd": {},
    "sd, bf16, v-prediction, Min-SNR": {
        **BF16,
        "train_args": {"prediction_type": "v_prediction", "snr_gamma": 5.0, "noise_offset": 0.1},
    },
    "sd, LoftQ, convolutions": {"lora": {"init_lora_weights": "loftq", "target_modules": ALL_LAYERS}},
    "sd, dropout, alpha, convolutions": {"lora": {"dropout": 0.2, "alpha": 3, "target_modules": ALL_LAYERS}},
    "sd, text encoder": {"train_args": {"train_text_encoder": True, "text_encoder_learning_rate": 3e-4}},
    "sd, buckets, long captions": {
        "transforms": {"buckets": True},
        "train_args": {"resolution": 128},
        "dataset": {"max_caption_tokens": 150},
    },
    "sd, masks, Huber": {"dataset": {"mask_column": "mask"}, "train_args": {"loss_type": "huber"}},
    "sd, held-out loss, results in between": {
        "validation": {"dataset": {"fraction": 0.25}, "every_n_steps": 1},
        "checkpoint_every_n_steps": 1,
    },
    "sd, two processes": {"train_args": {"gradient_accumulation_steps": 2}},
    "xl": {},
    "xl, bf16, LoftQ": {**BF16, "lora": {"init_lora_weights": "loftq", "target_modules": ALL_LAYERS}},
    "xl, text encoders, buckets": {
        "train_args": {"train_text_encoder": True, "resolution": 128},
        "transforms": {"buckets": True},
    },
    "ltx, clips and images": {
        "train_args": {"resolution": 128, "num_frames": 9},
        "transforms": {"buckets": True},
        "dataset": {"frame_extraction": "random"},
    },
    "wan, whole model, bf16": {**BF16, "training_type": "full", "train_args": {"num_frames": 5}},
    "cogvideox, clips": {"train_args": {"num_frames": 9}, "dataset": {"frame_extraction": "chunk"}},
    "hunyuan_video, bf16": {**BF16, "train_args": {"num_frames": 5, "guidance_scale": 2.0}},
}
BUILDERS: Final = {
    "sd": build_sd,
    "xl": build_sdxl,
    "ltx": build_ltx,
    "wan": build_wan,
    "cogvideox": build_cogvideox,
    "hunyuan_video": build_hunyuan_video,
}
"""First word of a task's name -> a builder of its base model."""
OF_CLIPS: Final = {"ltx", "wan", "cogvideox", "hunyuan_video"}
"""The models that are trained on clips."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout of the older program")
    parser.add_argument("new", type=Path, nargs="?", default=ROOT, help="a checkout of the newer one (default: this)")
    parser.add_argument("--only", default="", help="only the tasks whose name contains this")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="FILE", help="a file that the newer one writes differently"
    )
    args = parser.parse_args()
    compared = differing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {name: build(folder / name) for name, build in BUILDERS.items()}
        inputs |= {"images": _dataset(folder / "images"), "clips": _clips(folder / "clips")}
        for title in (title for title in TASKS if args.only in title):
            found, differences = _compare(
                title, inputs, args.old, args.new, folder / str(compared), ignored=args.ignore
            )
            compared, differing = compared + found, differing + len(differences)
            verdict = "DIFFERENT: " + ", ".join(differences) if differences else "all equal"
            print(f"{title}: {found} files, {verdict}", flush=True)
    print(f"{compared} files compared, {differing} differ")
    return int(differing > 0 or compared == 0)


def _dataset(folder: Path) -> Path:
    """Eight images of several shapes, each with several captions and a mask that is black on the left."""
    build_dataset(folder, captions="list")
    table = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows:
        with Image.open(folder / row["file_name"]) as image:
            mask = Image.linear_gradient("L").rotate(90).resize(image.size)
        row["mask"] = f"masks/{row['file_name']}"
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / row["mask"])
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _clips(folder: Path) -> Path:
    """Three clips and an image."""
    folder.mkdir()
    for k in range(3):
        make_clip(folder / f"{k}.mp4", frames=9 + 4 * k, first=40 * k)
        (folder / f"{k}.txt").write_text(f"clip {k}")
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "3.png")
    (folder / "3.txt").write_text("an image")
    return folder


def _compare(
    title: str, inputs: Mapping[str, Path], old: Path, new: Path, folder: Path, *, ignored: Sequence[str]
) -> tuple[int, list[str]]:
    """Return how many files were compared, and the names of those that differ."""
    model = title.partition(",")[0]
    task = _task(TASKS[title], inputs[model], inputs["clips" if model in OF_CLIPS else "images"])
    processes = 2 if "processes" in title else 1
    halves = {name: _train(one, task, folder / name / "half", processes) for name, one in (("old", old), ("new", new))}
    runs = {f"{name}, first half": half for name, half in halves.items()}
    for name, begun, program in (("old", "old", old), ("new", "new", new), ("handed over", "old", new)):
        going_on = task | {"checkpoint": str(halves[begun] / "checkpoint")}
        runs[name] = _train(program, going_on, folder / name / "whole", processes)
    pairs = [("old", "new"), ("old", "handed over"), ("old, first half", "new, first half")]
    count, differences = 0, []
    for one, other in pairs:
        before, after = _files(runs[one]), _files(runs[other])
        count += len(before)
        found = [name for name in _differences(before, after) if not name.endswith(tuple(ignored))]
        differences += [f"{name} ({other})" for name in found]
    return count, differences


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of files that differ; of JSON files those of the keys."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{name}: {key}" for key in _differences(one, other)]
        elif one != other:
            found.append(name)
    return found


def _task(changes: Mapping[str, Any], model: Path, dataset: Path) -> dict[str, Any]:
    task: dict[str, Any] = {
        "model": {"name": str(model)},
        "dataset": {"name": str(dataset)},
        "validation": {"num_images": 1, "num_inference_steps": 3},
        "train_args": {
            "learning_rate": 1e-3,
            "batch_size": 2,
            "num_train_steps": STEPS // 2,
            "max_train_steps": STEPS,
            "scale_lr": False,
            "resolution": 64,
        },
        "lora": {"rank": 2},
        "transforms": {"random_flip": True},
        "seed": 7,
    }
    for key, value in changes.items():
        task[key] = task[key] | value if isinstance(value, dict) else value
    return task


def _train(checkout: Path, task: Mapping[str, Any], out: Path, processes: int) -> Path:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(out.parent),
        "CACHE_DIR": str(out.parent / "cache"),
        "DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PROCESSES": str(processes),
        "TASK_JSON": json.dumps(task),
    }
    command = [sys.executable, str(checkout.resolve() / "entrypoint.py"), "--output-dir", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{checkout}: code {run.returncode}\n{run.stderr}")
    return out


def _files(out: Path) -> dict[str, Any]:
    """The two folders' files; of JSON the values that do not name the program."""
    return {
        f"{folder}/{path.relative_to(out / folder)}": _content(path)
        for folder in ("checkpoint", "validation")
        for path in _walk(out / folder)
    }


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _content(path: Path) -> Any:
    data = path.read_bytes()
    return _neutral(json.loads(data)) if path.suffix == ".json" else data


def _neutral(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _neutral(inner) for key, inner in value.items() if key not in OF_THE_PROGRAM}
    return [_neutral(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
