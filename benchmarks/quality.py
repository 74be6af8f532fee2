"""How well the base draws its subjects, and whether a training moves the style and keeps the subject.

    pip install --no-deps -r benchmarks/requirements.txt
    python assets/prepare_data.py --work build/emoji     # the real images to compare with
    python benchmarks/quality.py all --renders build/emoji --output build/quality

`base` draws the subjects' captions and looks for the nearest real image, by an ImageNet network's features. `trained`
trains the task as a chain through the normal entrypoint, exactly as `make demo` does, and draws captions with and
without what was trained at the same seeds: held-out ones, ones whose drawing in the style the base has not seen
either, and ones that were trained on. A LoRA is trained or, with `--task benchmarks/whole_model.json`, the denoiser.
The output folder gets `quality.json`, `quality.png`, the drawings and the chain's tasks. docs/quality.md says what the
figures mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.emoji import (  # noqa: E402
    COLUMNS,
    NUM_STEPS,
    STYLES,
    Subjects,
    dataset_captions,
    draw,
    draw_sheet,
    load_pipeline,
    reconstruct,
)
from benchmarks.yardsticks import (  # noqa: E402
    Embedder,
    Measure,
    Probe,
    accuracy,
    pixel_statistics,
    pooled_pixels,
    ranks,
    silhouettes,
)

Result = dict[str, Any]
HELD_OUT = ROOT / "assets/datasets/emoji-high-contrast-heldout"


@dataclass(slots=True)
class Bench:
    """What both stages use."""

    subjects: Subjects
    measures: dict[str, Measure]
    """What images are compared by."""
    banks: dict[str, dict[str, torch.Tensor]]
    """The real images' vectors by measure and style, (subjects, width)."""
    seed: int
    """Of the first image of a set."""
    guidance: float
    sheet: list[tuple[str, np.ndarray]]
    """The contact sheet: labelled rows of `COLUMNS` images."""
    drawings: dict[str, np.ndarray]
    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def draw(self, pipeline: Any, prompts: Sequence[str], name: str) -> np.ndarray:
        """One image per prompt, kept under `name`: uint8 (prompts, height, width, 3)."""
        with self.phase(f"draw {name}"):
            self.drawings[name] = draw(pipeline, prompts, self.seed, self.guidance)
        return self.drawings[name]

    def accuracy(self, images: np.ndarray, indices: Sequence[int], *styles: str) -> dict[str, dict[str, float]]:
        """By measure, of images of the subjects `indices`, among all subjects' real images in `styles`."""
        subjects = torch.arange(len(self.subjects.captions)).repeat(len(styles))
        found = {}
        for name, measure in self.measures.items():
            bank = torch.cat([self.banks[name][style] for style in styles])
            found[name] = accuracy(ranks(measure(images), torch.tensor(indices), bank, subjects))
        return found


def start_bench(renders: Path, seed: int, guidance: float) -> Bench:
    """Read the real images and embed them."""
    subjects = Subjects.load(renders)
    measures: dict[str, Measure] = {
        "embedding": Embedder(),
        "pooled pixels": pooled_pixels,
        "silhouette": silhouettes,
    }
    banks = {name: {style: measure(subjects.images[style]) for style in STYLES} for name, measure in measures.items()}
    return Bench(subjects, measures, banks, seed, guidance, [], {}, {})


def measure_base(bench: Bench, base: Path, every: int) -> Result:
    """Subject accuracy of the base among the flat renders of all subjects."""
    pipeline = load_pipeline(base)
    indices = list(range(0, len(bench.subjects.captions), every))
    images = bench.draw(pipeline, [bench.subjects.captions[n] for n in indices], "held-in")
    real = bench.subjects.images["flat"][indices]
    shown = np.linspace(0, len(indices) - 1, 2 * COLUMNS).round().astype(int)
    for half in (shown[:COLUMNS], shown[COLUMNS:]):
        bench.sheet += [("real, flat", real[half]), ("base", images[half])]
    return {
        "subjects": len(indices),
        "accuracy": bench.accuracy(images, indices, "flat"),
        "accuracy of reconstructed real images": bench.accuracy(reconstruct(pipeline, real), indices, "flat"),
    }


def train(task_file: Path, output: Path) -> tuple[Path, Result]:
    """Train the task as a chain through the normal entrypoint; the result's folder and facts about the training."""
    command = [sys.executable, str(ROOT / "entrypoint.py"), "chain", "--task", str(task_file), "--output", str(output)]
    subprocess.run([*command, "--", "--device", "cpu", "--cache-dir", str(output / "cache")], check=True)
    results = [json.loads(path.read_text()) for path in sorted(output.glob("[0-9]*/result.json"))]
    facts: Result = {
        "tasks": len(results),
        "steps": results[-1]["global_step"],
        "seconds": [r["seconds"] for r in results],
        "task": json.loads(task_file.read_text()),
    }
    return output / f"{len(results) - 1:03}/checkpoint", facts


def fit_probes(bench: Bench, held_out: Sequence[int], images: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two probes of style, trained on real images of subjects that are not held out.

    Args:
        held_out: the numbers of the held-out subjects.
        images: their real images after the autoencoder, flat ones first, as the second check.

    Returns:
        Name -> (features of images, `Probe`); name -> accuracy on real held-out images, and on `images`.
    """
    others = sorted(set(range(len(bench.subjects.captions))) - set(held_out))
    real = bench.subjects.images
    probes, checks = {}, {}
    for name, features in (("pixel statistics", pixel_statistics), ("embedding", bench.measures["embedding"])):
        flat, contrast = (features(real[style][others]) for style in STYLES)
        probe = Probe.fit(flat, contrast)
        checks[name] = {
            "accuracy on real images": _probe_accuracy(
                probe, features(np.concatenate([real[style][list(held_out)] for style in STYLES]))
            ),
            "accuracy on reconstructed real images": _probe_accuracy(probe, features(images)),
        }
        probes[name] = (features, probe)
    return probes, checks


def _probe_accuracy(probe: Probe, features: torch.Tensor) -> float:
    """Of rows of which the first half is flat and the second high-contrast."""
    flat, contrast = features.chunk(2)
    return (1 - probe.share(flat) + probe.share(contrast)) / 2


def load_trained(pipeline: Any, trained: Path) -> None:
    """Give a pipeline the denoiser in `trained/unet`, or the LoRA in the folder `trained`."""
    if (trained / "unet").is_dir():
        pipeline.unet = UNet2DConditionModel.from_pretrained(trained, subfolder="unet", torch_dtype=torch.float32)
    else:
        pipeline.load_lora_weights(trained)


def draw_sets(
    bench: Bench, base: Path, trained: Path, prompts: dict[str, list[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """The images of each set of prompts at the same seeds.

    Returns:
        Set -> `without` and `with` what was trained, and `named`: without it, by the words that name the style to the
        base.
    """
    pipeline = load_pipeline(base)
    images: dict[str, dict[str, np.ndarray]] = {name: {} for name in prompts}
    for key in ("without", "named", "with"):
        if key == "with":
            load_trained(pipeline, trained)
        for name, texts in prompts.items():
            asked = [bench.subjects.named[text] for text in texts] if key == "named" else texts
            images[name][key] = bench.draw(pipeline, asked, f"{name} {key}")
    return images


def measure_real(bench: Bench, base: Path, held_out: Sequence[int]) -> tuple[Result, np.ndarray]:
    """What the measures say of the held-out subjects' real images, so of drawings as good as can be.

    Returns:
        By style the accuracy after the autoencoder, and of the flat ones among the high-contrast: what a measure sees
        of a subject through the change of style. And the images after the autoencoder, flat ones first.
    """
    pipeline, real = load_pipeline(base), bench.subjects.images
    drawn = {style: reconstruct(pipeline, real[style][list(held_out)]) for style in STYLES}
    flat, contrast = STYLES
    result: Result = {style: bench.accuracy(drawn[style], held_out, style) for style in STYLES}
    result["flat among high-contrast"] = bench.accuracy(drawn[flat], held_out, contrast)
    return result, np.concatenate([drawn[flat], drawn[contrast]])


def measure_trained(bench: Bench, base: Path, trained: Path, captions: dict[str, list[str]], num_seeds: int) -> Result:
    """Style and subject, with and without what was trained.

    Args:
        captions: set -> the captions that are drawn. There is `held-out`, on which the probes are tried.
        num_seeds: images for each caption. Of a set only as many captions are drawn as `held-out` has, evenly spread.
    """
    count = len(captions["held-out"])
    chosen = {name: [texts[n * len(texts) // count] for n in range(count)] for name, texts in captions.items()}
    subjects = {name: [bench.subjects.captions.index(text) for text in texts] for name, texts in chosen.items()}
    images = draw_sets(bench, base, trained, {name: texts * num_seeds for name, texts in chosen.items()})
    real, reconstructed = measure_real(bench, base, subjects["held-out"])
    probes, checks = fit_probes(bench, subjects["held-out"], reconstructed)
    result: Result = {"probes": checks, "accuracy of reconstructed real images": real}
    flat, high_contrast = STYLES
    for name, drawings in images.items():
        indices = subjects[name] * num_seeds
        result[name] = {"subjects": count, "images": len(indices)}
        for key, drawn in drawings.items():
            style = flat if key == "without" else high_contrast
            called = {probe: fitted.share(features(drawn)) for probe, (features, fitted) in probes.items()}
            result[name][key] = {
                "called high-contrast": called,
                "accuracy among both styles": bench.accuracy(drawn, indices, *STYLES),
                f"accuracy among {style}": bench.accuracy(drawn, indices, style),
            }
        real_images = bench.subjects.images[high_contrast][subjects[name]]
        for half in (slice(COLUMNS), slice(COLUMNS, 2 * COLUMNS)):
            bench.sheet += [(f"{name}, {key}", drawings[key][half]) for key in ("without", "with")]
            bench.sheet += [("real", real_images[half])]
    return result


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("stage", choices=["base", "trained", "all"])
    parser.add_argument("--renders", type=Path, required=True, help="the work folder of assets/prepare_data.py")
    parser.add_argument("--output", type=Path, default=Path("build/quality"))
    parser.add_argument("--every", type=int, default=1, help="draw every so many-th subject in stage base")
    parser.add_argument("--task", type=Path, default=ROOT / "examples/demo/task.json", help="base, dataset, training")
    parser.add_argument("--trained", type=Path, help="a folder with a LoRA or with unet/, in place of a training")
    parser.add_argument("--heldout-only", action="store_true", help="draw no captions that were trained on")
    parser.add_argument("--seeds", type=int, default=2, help="images for each caption in stage trained")
    parser.add_argument("--seed", type=int, default=1000, help="the first image's; the next image's is one more")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    task = json.loads(args.task.read_text())
    base, dataset = (args.task.parent / task[key]["name"] for key in ("model", "dataset"))
    bench = start_bench(args.renders, args.seed, args.guidance)
    result: Result = {
        "settings": {"steps": NUM_STEPS, "guidance": args.guidance, "first seed": args.seed, "threads": args.threads},
        "torch": torch.__version__,
        "seconds": bench.seconds,
    }
    if args.stage in ("base", "all"):
        result["base"] = measure_base(bench, base, args.every)
    if args.stage in ("trained", "all"):
        trained = args.trained
        if trained is None:
            with bench.phase("train"):
                trained, result["training"] = train(args.task, args.output / "chain")
        captions = {"held-out": dataset_captions(HELD_OUT), "unseen": bench.subjects.unseen}
        if not args.heldout_only:
            captions["trained on"] = dataset_captions(dataset)
        result["trained"] = measure_trained(bench, base, trained, captions, args.seeds)
    text = json.dumps(result, indent=2)
    (args.output / "quality.json").write_text(text + "\n")
    save_file(bench.drawings, args.output / "drawings.safetensors")
    draw_sheet(bench.sheet).quantize(256).save(args.output / "quality.png", optimize=True)
    print(text)


if __name__ == "__main__":
    main()
