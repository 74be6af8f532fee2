"""Small real inputs for tests: Stable Diffusion pipelines in Diffusers' layout and an image folder, in under a second.

Every part is the real class with random weights, so whatever loads, trains or reads the real thing does it here too.
Run as a program it writes one of each: `python -m tests.support.tiny FOLDER`.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

MERGES = ("i n", "t h", "a n", "e r", "th e</w>", "r e", "o n", "o f</w>", "s t", "l e")
HIDDEN = 32
XL_SECOND_HIDDEN, XL_POOLED, XL_TIME = 24, 20, 8
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DTYPES = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = ((64, 64), (96, 64), (64, 80), (72, 72), (48, 96), (80, 56))
CAPTIONS = (
    "a red square",
    "the blue circle on the left",
    "two green stripes",
    "an old map of the sea",
    "a cat, sleeping",
)


def build_sd(
    folder: Path,
    *,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
    scheduler: Literal["PNDMScheduler", "DDIMScheduler"] = "PNDMScheduler",
    variant: Literal["fp16", "bf16"] | None = None,
    only_variant: bool = False,
    rescale_betas_zero_snr: bool = False,
) -> Path:
    """Write a Stable Diffusion pipeline with random weights of the seed to `folder`, and return the folder.

    A VAE with 4 latent channels that shrinks by 8; a UNet of two resolutions with cross-attention of width 32, 64² at
    its native size; a CLIP of two layers, 77 positions. `variant` adds the weights in that dtype beside the float32
    ones (`*.fp16.safetensors`), or in place of them with `only_variant`: then the text encoder's config.json names
    that dtype too, as many fine-tuned models' does.
    """
    betas = _scheduler(scheduler, prediction_type, rescale_betas_zero_snr)
    return save_pipeline(lambda: _pipeline(betas), Path(folder), seed, variant, only_variant)


def build_sdxl(
    folder: Path,
    *,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
    variant: Literal["fp16", "bf16"] | None = None,
    only_variant: bool = False,
) -> Path:
    """Write a Stable Diffusion XL pipeline like `build_sd` does, and return the folder.

    As in the real one, the two text encoders differ in width, depth and activation, their tokenizers in padding, the
    UNet's first resolution has no attention, and its transformers are of several layers.
    """
    return save_pipeline(lambda: _pipeline_xl(prediction_type), Path(folder), seed, variant, only_variant)


def build_dataset(
    folder: Path,
    count: int = 8,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    captions: Literal["one", "list"] = "one",
    seed: int = 0,
) -> Path:
    """Write an image folder of `count` distinct PNG images with captions in `metadata.jsonl`, and return the folder.

    `sizes` are (width, height), taken in turn. With `captions="list"` each row has one to three captions.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        name = f"{index:04d}.png"
        _picture(draws, *sizes[index % len(sizes)]).save(folder / name)
        texts = [f"{CAPTIONS[(index + k) % len(CAPTIONS)]} {index}" for k in range(1 + index % 3)]
        rows.append({"file_name": name, "text": texts if captions == "list" else texts[0]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def save_pipeline(
    make: Callable[[], DiffusionPipeline],
    folder: Path,
    seed: int,
    variant: str | None = None,
    only_variant: bool = False,
) -> Path:
    """Write the pipeline that `make` returns to `folder`, with random weights of the seed, and return the folder."""
    with torch.random.fork_rng(devices=[]), _quiet():
        # The full-precision files are written last, so that the configurations are theirs when both are there.
        for name in [variant] * (variant is not None) + [None] * (not only_variant):
            torch.manual_seed(seed)
            pipe = make()
            pipe.to(dtype=DTYPES[name])
            pipe.save_pretrained(folder, variant=name)
    return folder


def build_tokenizer(**options: str) -> CLIPTokenizer:
    """CLIP's tokenizer with all single bytes but only ten merges: any caption can be tokenised."""
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **options)


def byte_letters() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2's and CLIP's byte-level tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]


def _pipeline(scheduler: PNDMScheduler | DDIMScheduler) -> StableDiffusionPipeline:
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _pipeline_xl(prediction_type: str) -> StableDiffusionXLPipeline:
    first, second = build_tokenizer(), build_tokenizer(pad_token="!")
    projected = text_config(
        second,
        hidden_size=XL_SECOND_HIDDEN,
        num_hidden_layers=3,
        projection_dim=XL_POOLED,
        hidden_act="gelu",
    )
    return StableDiffusionXLPipeline(
        vae=build_vae(scaling_factor=0.13025),
        text_encoder=build_text_encoder(first),
        text_encoder_2=CLIPTextModelWithProjection(projected).eval(),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet_xl(),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, prediction_type=prediction_type),
        add_watermarker=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP of two layers with states of width `HIDDEN`."""
    return CLIPTextModel(text_config(tokenizer)).eval()


def text_config(tokenizer: CLIPTokenizer, hidden_size: int = HIDDEN, **changes: object) -> CLIPTextConfig:
    """The configuration of a CLIP of two layers; `changes` to it."""
    options = {"num_hidden_layers": 2, "projection_dim": hidden_size, **changes}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def build_vae(scaling_factor: float = 0.18215, latent_channels: int = 4, **changes: object) -> AutoencoderKL:
    """A VAE that shrinks by 8; `changes` to its configuration."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
        **changes,
    ).eval()


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def _unet_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=HIDDEN + XL_SECOND_HIDDEN,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=XL_TIME,
        projection_class_embeddings_input_dim=6 * XL_TIME + XL_POOLED,
    ).eval()


def _scheduler(name: str, prediction_type: str, rescale_betas_zero_snr: bool) -> PNDMScheduler | DDIMScheduler:
    common = {**BETAS, "prediction_type": prediction_type, "steps_offset": 1, "set_alpha_to_one": False}
    if name == "PNDMScheduler":
        assert not rescale_betas_zero_snr, "PNDMScheduler has no such option: ask for DDIMScheduler"
        return PNDMScheduler(skip_prk_steps=True, **common)
    return DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=rescale_betas_zero_snr, **common)


def _small_png() -> bytes:
    buffer = io.BytesIO()
    _picture(np.random.default_rng(1), 64, 64).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(draws: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth gradient between random colours with a few rectangles: no two alike, no two crops alike."""
    corners = draws.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    for _ in range(4):
        x, y = (int(draws.integers(0, limit - 8)) for limit in (width, height))
        colour = tuple(int(value) for value in draws.integers(0, 256, 3))
        picture.paste(colour, (x, y, x + 8 + x // 4, y + 8 + y // 4))
    return picture


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warning that the safety checker is off: a random-weight model has none."""
    level, bars = diffusers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


SMALL_PNG = _small_png()
"""One image of 64 x 64 pixels."""


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(build_sd(target / "model"), build_dataset(target / "dataset"))


BUILDERS = {"StableDiffusionPipeline": build_sd, "StableDiffusionXLPipeline": build_sdxl}
"""A builder of a tiny model for each family of the engine, by its pipeline in Diffusers."""
