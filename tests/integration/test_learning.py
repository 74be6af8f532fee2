"""A small real run learns: the loss at fixed timesteps and noise falls, and with a tiny learning rate it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.integration.harness import changed, succeed, together
from tests.tiny import build_dataset

TIMESTEPS = (50, 200, 400, 600, 800, 950)
NUM_IMAGES = 4
TARGETS = r".*(to_[qkv]|to_out\.0|conv|conv1|conv2|conv_in|conv_out|proj_in|proj_out)"
STEPS = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return build_dataset(tmp_path_factory.mktemp("few") / "images", NUM_IMAGES, sizes=[(64, 64)])


@pytest.fixture(scope="module")
def task(task, images):
    """Over-fits a handful of images with an adapter on all kinds of layers."""
    return changed(
        task,
        {
            "dataset.name": str(images),
            "train_args": {
                "learning_rate": 1e-2,
                "batch_size": NUM_IMAGES,
                "num_train_steps": STEPS,
                "max_train_steps": STEPS,
                "scale_lr": False,
                "resolution": 64,
            },
            "lora": {"rank": 16, "target_modules": TARGETS},
            "transforms": {"center_crop": True, "random_flip": False},
        },
    )


@torch.no_grad()
def fixed_loss(model, images, lora=None):
    """Mean squared error of the noise at fixed timesteps and noise, by Diffusers alone."""
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    if lora is not None:
        pipe.load_lora_weights(str(lora))
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    draws = np.random.default_rng(0)
    losses = []
    for line in (images / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        with Image.open(images / row["file_name"]) as picture:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        tokens = pipe.tokenizer(row["text"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = pipe.text_encoder(tokens)[0]
        for timestep in TIMESTEPS:
            noise = torch.from_numpy(draws.standard_normal(latents.shape, dtype=np.float32))
            moment = torch.tensor([timestep])
            noisy = noising.add_noise(latents, noise, moment)
            predicted = pipe.unet(noisy, moment, encoder_hidden_states=states).sample
            losses.append(torch.nn.functional.mse_loss(predicted, noise).item())
    return float(np.mean(losses))


def test_the_loss_falls(task, model, images, tmp_path):
    learned, idle = together(
        lambda: succeed(task, tmp_path / "learned"),
        lambda: succeed(changed(task, {"train_args.learning_rate": 1e-12}), tmp_path / "idle"),
    )
    before = fixed_loss(model, images)
    after = fixed_loss(model, images, learned.out / "checkpoint")
    unchanged = fixed_loss(model, images, idle.out / "checkpoint")
    print(f"\nloss at fixed timesteps and noise: {before:.4f} before, {after:.4f} after {STEPS} steps, ")
    print(f"{unchanged:.4f} after {STEPS} steps with a learning rate of 1e-12")
    assert after < 0.3 * before
    assert unchanged == pytest.approx(before, rel=1e-4)
