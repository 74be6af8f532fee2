"""FLUX.2 [klein] on a tiny real pipeline, against Diffusers' own functions."""

import numpy as np
import pytest
import torch

from engine.models.families.flux2_klein import model
from engine.models.family import Drawing
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_flux2_klein import build_flux2_klein

CAPTIONS = ["", "the cat", "a cat" * 120]
LENGTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_flux2_klein(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder, caption_tokens=LENGTH)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(family, pipe, caption):
    with torch.no_grad():
        states, _ = pipe.encode_prompt(caption, max_sequence_length=LENGTH)
    assert torch.equal(family.encode_caption(caption)["encoder_hidden_states"], states[0])


def test_latents_are_those_that_the_pipeline_makes_of_an_image(family, pipe):
    """The mode, packed, and normalised by the stored statistics of the VAE's batch norm."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    moments = family.encode_pixels(pixels)
    found = family.sample_latents(moments, torch.ones(family.latent_shape(Extent(96, 64))))
    image = pipe.image_processor.preprocess(pixels.astype(np.float32) / 255)
    with torch.no_grad():
        expected = pipe._encode_vae_image(image, generator=None)[0]
    assert found.shape == family.latent_shape(Extent(96, 64)) == (16, 4, 6)
    torch.testing.assert_close(found, expected)


def test_the_statistics_of_the_vae_do_not_change(family):
    before = family.parts["vae"].bn.running_mean.clone()
    family.encode_pixels(np.zeros((64, 64, 3), np.uint8))
    assert torch.equal(family.parts["vae"].bn.running_mean, before) and not family.parts["vae"].bn.training


def test_the_loss_is_that_of_diffusers_trainer(family, pipe):
    """train_dreambooth_lora_flux2_klein.py."""
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions)
    sigmas, noisy = noised(family, batch)
    with torch.no_grad():
        states, text_ids = pipe.encode_prompt(captions, max_sequence_length=LENGTH)
        image_ids = pipe._prepare_latent_ids(noisy)
        tokens = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy),
            timestep=sigmas,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
    predicted = pipe._unpack_latents_with_ids(tokens, image_ids)
    expected = (predicted - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_a_token_is_one_position_of_the_latents(family):
    """A shift by size counts 6 x 4 tokens in an image of 96 x 64 pixels."""
    assert family.objective.patch == 1


@pytest.mark.slow
def test_a_distilled_model_draws_without_guidance(tmp_path):
    family = load_family(model, build_flux2_klein(tmp_path, is_distilled=True), caption_tokens=LENGTH)

    def draw(scale):
        drawing = Drawing(
            prompt="a cat", negative_prompt=None, guidance_scale=scale, num_inference_steps=2, size=(64, 64)
        )
        return family.draw(drawing, torch.Generator().manual_seed(0), lambda: None)

    assert np.array_equal(draw(4.0), draw(1.0))
