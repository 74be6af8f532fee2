"""LTX-Video on tiny real pipelines, against Diffusers' own functions."""

import numpy as np
import pytest
import torch

from engine.models.families.ltx import model
from engine.models.family import Drawing
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_ltx import VERSIONS, build_ltx

CAPTIONS = ["", "the cat", "a cat" * 120, "ünïcödé 猫 <pad> </s>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_ltx(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("length", [128, 60])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(folder, pipe, caption, length):
    found = load_family(model, folder, caption_tokens=length).encode_caption(caption)
    with torch.no_grad():
        states, mask, *_ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
    assert torch.equal(found["encoder_hidden_states"], states[0])
    assert torch.equal(found["encoder_attention_mask"], mask[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_latents_are_those_of_the_vae_and_normalised_after_they_are_drawn(tmp_path, version):
    family = load_family(model, build_ltx(tmp_path / "model", version=version))
    pixels = np.random.default_rng(0).integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
    pipe = plain_pipeline(tmp_path / "model")
    moments, noise = family.encode_pixels(pixels), torch.randn(family.latent_shape(Extent(96, 64, 17)))
    clip = torch.from_numpy(pixels / 127.5 - 1).permute(3, 0, 1, 2).to(torch.float32)
    with torch.no_grad():
        posterior = pipe.vae.encode(clip[None]).latent_dist
    drawn = posterior.mean + posterior.std * noise
    expected = pipe._normalize_latents(drawn, pipe.vae.latents_mean, pipe.vae.latents_std)[0]
    torch.testing.assert_close(family.sample_latents(moments, noise), expected)
    assert expected.shape == (8, 3, 2, 3)


@pytest.mark.parametrize("frames", [1, 17])
@pytest.mark.parametrize("frame_rate", [None, 12.5])
def test_the_loss_is_what_the_pipeline_would_be_asked(folder, pipe, frames, frame_rate):
    """Its transformer, called as `LTXPipeline.__call__` does, with a noise level of its own for each clip."""
    family = load_family(model, folder, frame_rate=frame_rate)
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions, frames=frames)
    sigmas, noisy = noised(family, batch)
    with torch.no_grad():
        states, mask, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        found = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy),
            encoder_hidden_states=states,
            timestep=sigmas * 1000,
            encoder_attention_mask=mask,
            num_frames=(frames - 1) // 8 + 1,
            height=2,
            width=3,
            rope_interpolation_scale=(8 / (frame_rate or 25), 32, 32),
        ).sample
    velocity = pipe._unpack_latents(found, (frames - 1) // 8 + 1, 2, 3)
    expected = (velocity - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_noise_levels_are_shifted_by_the_number_of_tokens(family):
    """As the pipeline computes it: each position of each frame of the latents is a token."""
    noise = [family.objective.sigmas(torch.empty(1, 8, frames, 4, 4), torch.tensor([499])) for frames in (1, 2)]
    shifts = [(sigma / (1 - sigma)).item() for sigma in noise]
    assert shifts == pytest.approx([np.exp(0.95 + (tokens - 1024) * 1.1 / 3072) for tokens in (16, 32)], rel=1e-3)


@pytest.mark.parametrize(
    "version, frames, guidance",
    [
        ("0.9.0", 9, 3.0),
        ("0.9.1", 9, 1.0),
        pytest.param("0.9.0", 1, 3.0, marks=pytest.mark.slow),
        pytest.param("0.9.1", 9, 3.0, marks=pytest.mark.slow),
        pytest.param("0.9.5", 9, 3.0, marks=pytest.mark.slow),
    ],
)
def test_clips_are_those_of_the_pipeline(tmp_path, version, frames, guidance):
    """Given torch's global seed as well, from which the VAE of 0.9.1 draws noise."""
    folder = build_ltx(tmp_path / "model", version=version)
    family, pipe = load_family(model, folder), plain_pipeline(folder)
    drawing = Drawing(
        prompt="a cat",
        negative_prompt="a dog",
        guidance_scale=guidance,
        num_inference_steps=2,
        size=(96, 64),
        frames=frames,
        frame_rate=12.0,
    )
    family.draw(drawing, torch.Generator(), lambda: None)  # which loads its parts
    state = torch.get_rng_state()
    found = family.draw(drawing, torch.Generator().manual_seed(5), lambda: None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    expected = pipe(
        "a cat",
        negative_prompt="a dog",
        guidance_scale=guidance,
        num_inference_steps=2,
        width=96,
        height=64,
        num_frames=frames,
        frame_rate=12.0,
        generator=torch.Generator().manual_seed(5),
    ).frames[0]
    torch.set_rng_state(state)
    assert np.array_equal(found, np.stack([np.asarray(frame) for frame in expected]))


def test_modules_have_the_original_names_in_web_interfaces(family):
    names = {name: family.webui_name("transformer", name) for name, _ in family.denoiser.named_modules()}
    assert names["proj_in"] == "diffusion_model.patchify_proj"
    assert names["time_embed.linear"] == "diffusion_model.adaln_single.linear"
    assert names["transformer_blocks.1.attn2.to_out.0"] == "diffusion_model.transformer_blocks.1.attn2.to_out.0"
    assert len({*names.values()}) == len(names)
