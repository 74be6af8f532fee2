"""Qwen-Image on a tiny real pipeline, against Diffusers' own functions."""

import numpy as np
import pytest
import torch

from engine.models.families.qwen_image import model
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_qwen_image import build_qwen_image

CAPTIONS = ["", "the cat", "a cat" * 60, "ünïcödé 猫 <|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_qwen_image(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("length", [512, 260])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(folder, pipe, caption, length):
    """Padded with zeros to a fixed length."""
    found = load_family(model, folder, caption_tokens=length).encode_caption(caption)
    with torch.no_grad():
        states, mask = pipe.encode_prompt(caption, max_sequence_length=length)
    number = int(found["num_tokens"])
    assert mask is None and torch.equal(found["encoder_hidden_states"][:number], states[0])
    assert len(found["encoder_hidden_states"]) == length and not found["encoder_hidden_states"][number:].any()


def test_latents_are_normalised_for_each_channel(family, pipe):
    """Drawn first, then (z - mean) / deviation."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    noise = torch.randn(family.latent_shape(Extent(96, 64)), generator=torch.Generator().manual_seed(0))
    found = family.sample_latents(family.encode_pixels(pixels), noise)
    image = pipe.image_processor.preprocess(pixels.astype(np.float32) / 255).unsqueeze(2)
    with torch.no_grad():
        posterior = pipe.vae.encode(image).latent_dist
    drawn = (posterior.mean + posterior.std * noise[None, :, None])[0, :, 0]
    config = pipe.vae.config
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(found, (drawn - mean) / deviation)


def test_the_loss_is_that_of_diffusers_trainer(family, pipe):
    """train_dreambooth_lora_qwen_image.py, with captions of several lengths and a mask."""
    batch = batch_of(family, ["a cat", "a long caption of many words"])
    sigmas, noisy = noised(family, batch)
    with torch.no_grad():
        states, mask = pipe.encode_prompt(["a cat", "a long caption of many words"])
        tokens = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, 2, 4, 8, 12),
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            timestep=sigmas,
            img_shapes=[[(1, 4, 6)]] * 2,
        ).sample
    predicted = pipe._unpack_latents(tokens, 64, 96, 8)[:, :, 0]
    expected = (predicted - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_captions_of_one_length_need_no_mask(family, monkeypatch):
    told = []
    forward = family.denoiser.forward

    def watched(**options):
        told.append(options["encoder_hidden_states_mask"])
        return forward(**options)

    monkeypatch.setattr(family.denoiser, "forward", watched)
    family.loss(batch_of(family, ["a cat", "a dog"]), LossOptions())
    family.loss(batch_of(family, ["a cat", "a horse"]), LossOptions())
    width = told[1].shape[1]
    assert told[0] is None and told[1].tolist() == [[True] * (width - 2) + [False] * 2, [True] * width]
