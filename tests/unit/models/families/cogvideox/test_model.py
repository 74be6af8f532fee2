"""CogVideoX on tiny real pipelines, against Diffusers' own functions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.models.families.cogvideox import model
from engine.models.family import Drawing
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, plain_pipeline
from tests.support.tiny_cogvideox import TEXT_LENGTH, build_cogvideox

KINDS = ["2b", "5b", "1.5"]
CLIP = Extent(96, 64, 9)
CAPTIONS = ["", "the cat", "a cat" * 60, "ünïcödé 猫"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return build_cogvideox(tmp_path_factory.mktemp("model"), kind=kind)


def load(folder: Path):
    return load_family(model, folder, prediction_type="v_prediction", caption_tokens=TEXT_LENGTH)


@pytest.fixture(scope="module")
def family(folder):
    return load(folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


def clip(extent=CLIP):
    width, height, frames = extent
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(family, pipe, caption):
    with torch.no_grad():
        states, _ = pipe.encode_prompt(caption, max_sequence_length=TEXT_LENGTH, do_classifier_free_guidance=False)
    assert torch.equal(family.encode_caption(caption)["encoder_hidden_states"], states[0])


@pytest.mark.parametrize("frames", [1, 9])
def test_latents_are_those_that_the_pipeline_decodes(family, pipe, kind, frames):
    """Missing frames, which it draws first and then drops, are copies of the first one."""
    extent = CLIP._replace(frames=frames)
    noise = torch.randn(family.latent_shape(extent), generator=torch.Generator().manual_seed(0))
    found = family.sample_latents(family.encode_pixels(clip(extent)), noise)
    pixels = pipe.video_processor.preprocess_video(list(clip(extent).astype(np.float32) / 255))
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
    count, missing = posterior.mean.shape[2], int(kind == "1.5")
    assert found.shape == (4, count + missing, 8, 12) == tuple(noise.shape)
    drawn = posterior.mean + posterior.std * noise[None, :, missing:]
    torch.testing.assert_close(found[:, missing:], drawn[0] * pipe.vae_scaling_factor_image)
    assert torch.equal(found[:, :missing], found[:, missing : 2 * missing])


def test_the_loss_is_that_of_diffusers_trainer(family, pipe):
    """train_cogvideox_lora.py: the error of x₀, weighted by 1 / (1 - ᾱ), which is that of the velocity."""
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions, frames=CLIP.frames)
    latents, noise = batch.latents.transpose(1, 2), batch.noise.transpose(1, 2)
    noisy = pipe.scheduler.add_noise(latents, noise, batch.timesteps)
    rotary = pipe._prepare_rotary_positional_embeddings(64, 96, latents.shape[1], torch.device("cpu"))
    with torch.no_grad():
        states, _ = pipe.encode_prompt(
            captions, max_sequence_length=TEXT_LENGTH, do_classifier_free_guidance=False, num_videos_per_prompt=1
        )
        found = pipe.transformer(
            hidden_states=noisy,
            encoder_hidden_states=states,
            timestep=batch.timesteps,
            image_rotary_emb=rotary if pipe.transformer.config.use_rotary_positional_embeddings else None,
        ).sample
    predicted = pipe.scheduler.get_velocity(found, noisy, batch.timesteps)
    weights = 1 / (1 - pipe.scheduler.alphas_cumprod[batch.timesteps].float())
    expected = (weights[:, None, None, None, None] * (predicted - latents) ** 2).mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_it_draws_what_the_pipeline_draws(family, pipe, frames):
    drawing = Drawing(
        prompt="a cat",
        negative_prompt="a dog",
        guidance_scale=3.0,
        num_inference_steps=2,
        size=CLIP.size,
        frames=frames,
    )
    found = family.draw(drawing, torch.Generator().manual_seed(1), lambda: None)
    pipe.vae.enable_tiling()
    expected = pipe(
        prompt="a cat",
        negative_prompt="a dog",
        guidance_scale=3.0,
        num_inference_steps=2,
        width=96,
        height=64,
        num_frames=frames,
        max_sequence_length=TEXT_LENGTH,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    pipe.vae.disable_tiling()
    assert found.shape == (frames, 64, 96, 3)
    assert np.array_equal(found, np.stack([np.asarray(image) for image in expected]))


def test_encoding_a_clip_does_not_load_the_transformer(folder):
    family = load(folder)
    family.latent_shape(CLIP)
    family.encode_pixels(clip(Extent(16, 16)))
    assert [*family.parts] == ["vae"]
