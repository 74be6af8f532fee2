"""What the speed benchmarks run on: base models with random weights and a folder of images, built on first use.

A random model is as fast as a trained one, so nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.real_shapes import XL_BASE_UNET
from tests.support.tiny import build_sd, build_tokenizer

EMA_DECAY: Final = 0.9999
"""What Diffusers' `EMAModel` has unless told otherwise; its script for whole models tells it nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training: the same for this program and for the one it is compared with."""

    model: Path
    dataset: Path
    steps: int
    batch_size: int
    resolution: int
    precision: str
    center_crop: bool
    is_whole_model: bool = False
    """Train all weights of the denoiser, not a LoRA."""
    has_ema: bool = False
    """Average the weights, with `EMA_DECAY`."""
    rank: int = 4
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    validation_images: int = 4
    prompt: str = "a red square"
    seed: int = 0

    def task(self) -> dict[str, Any]:
        """It as a task of this program."""
        task: dict[str, Any] = {
            "model": {"name": str(self.model)},
            "dataset": {"name": str(self.dataset)},
            "validation": {"prompt": self.prompt, "num_images": self.validation_images},
            "train_args": {
                "learning_rate": self.learning_rate,
                "lr_scheduler": {"lr_scheduler": self.lr_scheduler, "lr_warmup_steps": self.lr_warmup_steps},
                "scale_lr": False,
                "batch_size": self.batch_size,
                "num_train_steps": self.steps,
                "max_train_steps": self.steps,
                "resolution": self.resolution,
            },
            "transforms": {"center_crop": self.center_crop},
            "mixed_precision": self.precision,
            "seed": self.seed,
        }
        if self.has_ema:
            task["train_args"]["ema_decay"] = EMA_DECAY
        if self.is_whole_model:
            # As many denoising steps as Diffusers' script takes.
            return task | {"training_type": "full", "validation": task["validation"] | {"num_inference_steps": 20}}
        return task | {"lora": {"rank": self.rank, "init_lora_weights": "gaussian"}}


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


def build_sd15(folder: Path, resolution: int, *, parts: int = 1) -> Path:
    """Stable Diffusion 1.5's architecture (860 M parameters in the UNet) with random weights, stored in float16.

    The tokenizer knows few words; the text encoder's table is as large as the real one's. `resolution` is what
    pipelines draw unless told otherwise. `parts` divides the channels of UNet and VAE.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        **_words(tokenizer),
    )
    unet = UNet2DConditionModel(
        sample_size=resolution // 8,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=tuple(width // parts for width in (320, 640, 1280, 1280)),
    )
    pipeline = StableDiffusionPipeline(
        vae=_vae(512, 0.18215, parts=parts),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, **_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    return folder


def build_sdxl(folder: Path, resolution: int) -> Path:
    """Stable Diffusion XL's architecture (2.6 G parameters in the UNet) with random weights, in float16: 7 GB."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    texts = [
        CLIPTextConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            projection_dim=hidden,
            hidden_act=activation,
            **_words(tokenizer),
        )
        for hidden, layers, activation in ((768, 12, "quick_gelu"), (1280, 32, "gelu"))
    ]
    # Made in float16: in float32 it would take 13 GB of memory first.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(1024, 0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(texts[0]),
            text_encoder_2=CLIPTextModelWithProjection(texts[1]),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(**XL_BASE_UNET | {"sample_size": resolution // 8}),
            scheduler=EulerDiscreteScheduler(**_SCHEDULER),
        )
        pipeline.save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    return folder


_SCHEDULER: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _words(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """What a text encoder's configuration says of its tokens."""
    return {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vae(sample_size: int, scaling_factor: float, *, parts: int = 1, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(width // parts for width in (128, 256, 512, 512)),
        layers_per_block=2,
        latent_channels=4,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
        **more,
    )


def _build_tiny(folder: Path, resolution: int) -> Path:
    return build_sd(folder)


MODELS: Final[dict[str, Callable[[Path, int], Path]]] = {
    "tiny": _build_tiny,
    "sd15": build_sd15,
    "sd15-half": partial(build_sd15, parts=2),
    "sdxl": build_sdxl,
}


def build_model(work: Path, model: str, resolution: int) -> Path:
    """The folder of one of `MODELS`, built in `work` if it is not there; or `model` itself, in Diffusers' layout."""
    if model not in MODELS:
        return Path(model).resolve()
    folder = work / (model if model == "tiny" else f"{model}-{resolution}")
    if not (folder / "model_index.json").exists():
        MODELS[model](folder, resolution)
    return folder.resolve()


def build_images(work: Path, count: int, resolution: int) -> Path:
    """The folder of a dataset of `count` images, built in `work` if it is not there."""
    folder = work / f"images-{count}-{resolution}"
    if not (folder / "metadata.jsonl").exists():
        build_dataset(folder, count, resolution)
    return folder.resolve()


def main() -> None:
    """Build models, and 64 images for each resolution: `python -m benchmarks.workloads FOLDER sd15:512 sdxl:1024`."""
    work = Path(sys.argv[1])
    for wanted in sys.argv[2:]:
        model, resolution = wanted.split(":")
        build_images(work, 64, int(resolution))
        build_model(work, model, int(resolution))


if __name__ == "__main__":
    main()
