"""What the speed benchmarks run on: base models with random weights and a folder of images, built on first use.

A random model is as fast as a trained one, so nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny import build_sd, build_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training: the same for this program and for the one it is compared with."""

    model: Path
    dataset: Path
    num_images: int
    steps: int
    batch_size: int
    resolution: int
    precision: str
    center_crop: bool
    rank: int = 4
    learning_rate: float = 1e-4
    validation_images: int = 4
    seed: int = 0

    def task(self) -> dict[str, Any]:
        """It as a task of this program."""
        return {
            "model": {"name": str(self.model)},
            "dataset": {"name": str(self.dataset)},
            "validation": {"prompt": "a red square", "num_images": self.validation_images},
            "train_args": {
                "learning_rate": self.learning_rate,
                "scale_lr": False,
                "batch_size": self.batch_size,
                "num_train_steps": self.steps,
                "max_train_steps": self.steps,
                "resolution": self.resolution,
            },
            "lora": {"rank": self.rank, "init_lora_weights": "gaussian"},
            "transforms": {"center_crop": self.center_crop},
            "mixed_precision": self.precision,
            "seed": self.seed,
        }


def build_dataset(folder: Path, count: int, side: int) -> Path:
    """`count` JPEG images of `side` x 5/4 `side` pixels with captions; each another smooth pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        draws = np.random.default_rng(index)
        grid = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        name = f"{index:06}.jpg"
        grid.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(folder / name, quality=90)
        rows.append({"file_name": name, "text": f"a smooth pattern, number {index}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def build_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5's architecture (860 M parameters in the UNet) with random weights, stored in float16.

    The tokenizer knows few words; the text encoder's table is as large as the real one's.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    return folder


MODELS: Final[dict[str, Callable[[Path], Path]]] = {"tiny": build_sd, "sd15": build_sd15}


def prepare(
    work: Path,
    *,
    model: str,
    num_images: int,
    steps: int,
    batch_size: int,
    resolution: int,
    precision: str,
    center_crop: bool,
    validation_images: int,
) -> Workload:
    """A workload whose files lie in `work`; `model` is one of `MODELS`, or a folder in Diffusers' layout."""
    folder = Path(model)
    if model in MODELS:
        folder = work / model
        if not (folder / "model_index.json").exists():
            MODELS[model](folder)
    dataset = work / f"images-{num_images}-{resolution}"
    if not (dataset / "metadata.jsonl").exists():
        build_dataset(dataset, num_images, resolution)
    return Workload(
        model=folder.resolve(),
        dataset=dataset.resolve(),
        num_images=num_images,
        steps=steps,
        batch_size=batch_size,
        resolution=resolution,
        precision=precision,
        center_crop=center_crop,
        validation_images=validation_images,
    )
