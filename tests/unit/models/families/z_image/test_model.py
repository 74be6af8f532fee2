"""Z-Image on a tiny real pipeline, against Diffusers' own functions."""

import numpy as np
import pytest
import torch

from engine.models.families.z_image import model
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_z_image import build_z_image

CAPTIONS = ["", "the cat", "a cat" * 120, "ünïcödé 猫 <|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_z_image(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("length", [512, 60])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(folder, pipe, caption, length):
    """Padded with zeros to a fixed length."""
    found = load_family(model, folder, caption_tokens=length).encode_caption(caption)
    with torch.no_grad():
        (states,), _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
    number = int(found["num_tokens"])
    assert torch.equal(found["encoder_hidden_states"][:number], states)
    assert len(found["encoder_hidden_states"]) == length and not found["encoder_hidden_states"][number:].any()


def test_latents_are_the_mode(family, pipe):
    """As in Diffusers' trainer; noise is not used."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    moments = family.encode_pixels(pixels)
    found = family.sample_latents(moments, torch.ones(family.latent_shape(Extent(96, 64))))
    image = pipe.image_processor.preprocess(pixels.astype(np.float32) / 255)
    with torch.no_grad():
        mode = pipe.vae.encode(image).latent_dist.mode()[0]
    assert moments.keys() == {"mean"}
    torch.testing.assert_close(found, (mode - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor)


def test_the_loss_is_that_of_diffusers_trainer(family, pipe):
    """train_dreambooth_lora_z_image.py: its transformer is told 1 - σ, and predicts the opposite of the target."""
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions)
    sigmas, noisy = noised(family, batch)
    with torch.no_grad():
        states, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        found = pipe.transformer(list(noisy.unsqueeze(2)), (1000 - 1000 * sigmas) / 1000, states).sample
    predicted = -torch.stack(found, dim=0).squeeze(2)
    expected = (predicted - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_the_loss_keeps_its_gradients(family):
    """Images go in and come out in lists."""
    family.denoiser.requires_grad_(True)
    family.loss(batch_of(family, ["a cat", "a dog"]), LossOptions()).backward()
    without = {name for name, parameter in family.denoiser.named_parameters() if parameter.grad is None}
    family.denoiser.requires_grad_(False)
    family.denoiser.zero_grad()
    assert without == set()
