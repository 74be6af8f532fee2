"""On the trained base that comes along, a run learns: the loss falls, the style of what it draws moves, and a chain
of slices learns the very same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.support.harness import assert_same, changed, read_json, run_chain, succeed, together

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "assets/base-emoji"
DATASET = ROOT / "assets/datasets/emoji-high-contrast"
TIMESTEPS = (100, 300, 500, 700, 900)
NUM_COMPARED = 4
STEPS, SLICES = 16, [6, 10]


@pytest.fixture(scope="module")
def task():
    """The demo's, but short, of small batches and with larger updates."""
    demo = read_json(ROOT / "examples/demo/task.json")
    return changed(
        demo,
        {
            "model.name": str(BASE),
            "dataset.name": str(DATASET),
            "validation.num_images": 1,
            "validation.num_inference_steps": 8,
            "validation.every_n_steps": 8,
            "validation.dataset": {"fraction": 0.05, "max_images": 8},
            "train_args.batch_size": 4,
            "train_args.learning_rate": 2e-3,
            "train_args.num_train_steps": STEPS,
            "train_args.max_train_steps": STEPS,
            "train_args.lr_scheduler": {"lr_scheduler": "cosine", "lr_warmup_steps": 2},
        },
    )


@pytest.fixture(scope="module")
def learned(task, tmp_path_factory):
    """The task in one go, and, for a few steps, with next to no learning rate."""
    folder = tmp_path_factory.mktemp("learned")
    idle = {"train_args.learning_rate": 1e-12, "train_args.num_train_steps": 2, "train_args.max_train_steps": 2}
    return together(
        lambda: succeed(task, folder / "whole"),
        lambda: succeed(changed(task, idle), folder / "idle"),
    )


def load_pipeline(lora=None):
    pipe = StableDiffusionPipeline.from_pretrained(BASE, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora))
    return pipe


@torch.no_grad()
def fixed_loss(lora=None):
    """Mean squared error of the velocity at fixed timesteps and noise, on images trained on, by Diffusers alone."""
    pipe = load_pipeline(lora)
    noising = DDIMScheduler.from_config(pipe.scheduler.config)
    assert noising.config.prediction_type == "v_prediction"
    draws = np.random.default_rng(0)
    losses = []
    for line in (DATASET / "metadata.jsonl").read_text().splitlines()[::48][:NUM_COMPARED]:
        row = json.loads(line)
        pixels = torch.from_numpy(read_pixels(DATASET / row["file_name"])).permute(2, 0, 1)[None] / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        tokens = pipe.tokenizer(row["text"][0], padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = pipe.text_encoder(tokens)[0]
        noise = torch.from_numpy(draws.standard_normal((len(TIMESTEPS), *latents.shape[1:]), dtype=np.float32))
        moments, latents = torch.tensor(TIMESTEPS), latents.expand_as(noise)
        noisy = noising.add_noise(latents, noise, moments)
        predicted = pipe.unet(noisy, moments, encoder_hidden_states=states.expand(len(noise), -1, -1)).sample
        target = noising.get_velocity(latents, noise, moments)
        losses.append(torch.nn.functional.mse_loss(predicted, target).item())
    return float(np.mean(losses))


def read_pixels(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def chroma(pixels):
    """How far a pixel's channels lie apart, on average, in [0, 1]: black on white has none."""
    return float(np.ptp(pixels.astype(np.float32), axis=-1).mean()) / 255


def test_the_loss_falls(learned):
    whole, idle = learned
    before = fixed_loss()
    after = fixed_loss(whole.out / "checkpoint")
    unchanged = fixed_loss(idle.out / "checkpoint")
    print(f"\nloss at fixed timesteps and noise: {before:.4f} before, {after:.4f} after {STEPS} steps, ")
    print(f"{unchanged:.4f} after 2 steps with a learning rate of 1e-12")
    assert after < 0.75 * before
    assert unchanged == pytest.approx(before, rel=1e-4)


def heldout_rows(finished):
    return [json.loads(line) for line in (finished.out / "checkpoint/heldout.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_chain_learns_the_same(task, learned, tmp_path):
    """And the losses of held-out images are the same at the same steps."""
    whole, _ = learned
    chained = run_chain(task, tmp_path, SLICES)[-1]
    assert_same(chained.weights(), whole.weights())
    assert (chained.out / "checkpoint/FINISH").exists()
    assert [row for row in heldout_rows(chained) if row["step"] != SLICES[0]] == heldout_rows(whole)


def test_the_loss_of_images_that_are_not_trained_on_falls(learned):
    """By the job's own measurement; without learning it stays."""
    whole, idle = (heldout_rows(one) for one in learned)
    losses = {row["step"]: row["loss"] for row in whole}
    print(f"\nheld-out loss by step: {losses}, by noise {whole[0]['strata']} to {whole[-1]['strata']}")
    assert list(losses) == [0, 8, STEPS]
    assert losses[STEPS] < losses[8] < losses[0] and losses[STEPS] < 0.8 * losses[0]
    assert idle[0] == whole[0] and idle[1]["loss"] == pytest.approx(losses[0], rel=1e-4)
    assert learned[0].result["best_step"] == STEPS and learned[0].result["heldout_loss"] == losses[STEPS]


@pytest.mark.slow
def test_the_style_moves(task, tmp_path):
    """From colour to black and white, as far as the dataset's own images go, at the same prompts and seeds."""
    longer = {"train_args.num_train_steps": 150, "train_args.max_train_steps": 150, "train_args.batch_size": 8}
    ends = {
        **{"validation.num_images": 4, "validation.num_inference_steps": 30},
        **{"validation.every_n_steps": None, "validation.dataset": None},
    }
    finished = succeed(changed(task, {**longer, **ends}), tmp_path / "out")
    drawn, without = [], []
    pipe = load_pipeline()
    for image in read_json(finished.out / "validation/prompts.json"):
        drawn.append(read_pixels(finished.out / "validation" / image["file"]))
        generator = torch.Generator().manual_seed(image["seed"])
        shown = pipe(image["prompt"], num_inference_steps=30, guidance_scale=7.5, generator=generator).images[0]
        without.append(np.asarray(shown))
    real = np.stack([read_pixels(path) for path in sorted(DATASET.glob("*.png"))])
    found = {"with": chroma(np.stack(drawn)), "without": chroma(np.stack(without)), "real": chroma(real)}
    print(f"\nmean chroma: {found}")
    assert found["real"] == 0
    assert found["without"] > 0.05
    assert found["with"] < 0.6 * found["without"]
    dark = [(pixels.mean(-1) < 64).mean() for pixels in (np.stack(drawn), np.stack(without), real)]
    print(f"share of black pixels with, without, real: {dark}")
    assert max(5 * dark[1], dark[2] / 2) < dark[0] < 2 * dark[2]
