"""The emoji that benchmarks/quality.py compares: real ones, drawn ones, and the contact sheet of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from engine.core.rng import torch_generator

STYLES = ("flat", "high-contrast")
NUM_STEPS = 30
BATCH = 32
CELL, COLUMNS, MARGIN = 64, 16, 96


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects' captions and their real images by style: uint8, (subjects, 64, 64, 3), in the captions' order."""

    captions: list[str]
    named: dict[str, str]
    """Caption -> the caption that names the high-contrast style, as the base knows it."""
    unseen: list[str]
    """The captions of those whose high-contrast drawing neither the base's denoiser nor the LoRA was shown."""
    images: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> Subjects:
        rows = json.loads((folder / "subjects.json").read_text())
        renders = load_file(folder / "renders.safetensors")
        return cls(
            [row["caption"] for row in rows],
            {row["caption"]: row["high_contrast_caption"] for row in rows},
            [row["caption"] for row in rows if row["unseen"]],
            {style: renders[style] for style in STYLES},
        )


def dataset_captions(folder: Path) -> list[str]:
    """An imagefolder's captions, each once; of a row with several, the first."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return list(dict.fromkeys(text if isinstance(text, str) else text[0] for text in texts))


def load_pipeline(base: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], first_seed: int, guidance: float) -> np.ndarray:
    """Image n from seed `first_seed + n`: uint8 (prompts, height, width, 3)."""
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        generators = [torch_generator(first_seed + start + n) for n in range(len(batch))]
        drawn = pipeline(batch, num_inference_steps=NUM_STEPS, guidance_scale=guidance, generator=generators).images
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


def draw_sheet(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Labelled rows of images on white."""
    sheet = Image.new("RGB", (MARGIN + COLUMNS * CELL, len(rows) * CELL), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(rows):
        pen.text((4, row * CELL + CELL // 2), label, fill="black", anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image).resize((CELL, CELL)), (MARGIN + column * CELL, row * CELL))
    return sheet
