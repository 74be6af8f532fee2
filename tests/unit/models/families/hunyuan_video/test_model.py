"""HunyuanVideo on a tiny real pipeline, against Diffusers' own functions."""

import json
import shutil

import numpy as np
import pytest
import torch

from engine.core.errors import ModelError
from engine.models.families.hunyuan_video import model
from engine.models.family import Drawing
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_hunyuan_video import build_hunyuan_video

CAPTIONS = ["", "the cat", "a cat" * 60, "ünïcödé 猫 <|eot_id|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_hunyuan_video(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder, guidance_scale=2.5)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("length", [256, 16])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(folder, pipe, caption, length):
    found = load_family(model, folder, caption_tokens=length).encode_caption(caption)
    with torch.no_grad():
        states, pooled, mask = pipe.encode_prompt(caption, max_sequence_length=length)
    assert torch.equal(found["encoder_hidden_states"], states[0]) and torch.equal(
        found["pooled_projections"], pooled[0]
    )
    assert torch.equal(found["encoder_attention_mask"], mask[0]) and len(states[0]) == length


@pytest.mark.parametrize("frames", [1, 21])
def test_latents_are_those_of_the_pipelines_vae(family, pipe, frames):
    """It encodes more than 16 frames in pieces, which it blends."""
    extent = Extent(48, 32, frames)
    pixels = np.random.default_rng(0).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)
    noise = torch.randn(family.latent_shape(extent), generator=torch.Generator().manual_seed(0))
    found = family.sample_latents(family.encode_pixels(pixels), noise)
    video = pipe.video_processor.preprocess_video(list(pixels.astype(np.float32) / 255))
    with torch.no_grad():
        posterior = pipe.vae.encode(video).latent_dist
    drawn = (posterior.mean + posterior.std * noise)[0]
    torch.testing.assert_close(found, drawn * pipe.vae.config.scaling_factor)
    assert found.shape == (4, (frames - 1) // 4 + 1, 4, 6)


def test_the_loss_is_that_of_flow_matching(family, pipe):
    """With captions of several lengths, a mask, and the guidance scale of the task."""
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions, frames=9)
    sigmas, noisy = noised(family, batch)
    with torch.no_grad():
        states, pooled, mask = pipe.encode_prompt(captions)
        predicted = pipe.transformer(
            hidden_states=noisy,
            timestep=sigmas * 1000,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=torch.tensor([2500.0, 2500.0]),
        ).sample
    expected = (predicted - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_a_scale_that_is_not_told_changes_nothing(tmp_path):
    folder = build_hunyuan_video(tmp_path, guidance=False)
    families = [load_family(model, folder, guidance_scale=scale) for scale in (1.0, 6.0)]
    losses = [family.loss(batch_of(family, ["a cat"]), LossOptions()) for family in families]
    assert torch.equal(*losses)


@pytest.mark.parametrize("frames", [1, 5])
def test_it_draws_what_the_pipeline_draws(family, pipe, frames):
    drawing = Drawing(
        prompt="a cat", negative_prompt=None, guidance_scale=6.0, num_inference_steps=2, size=(96, 64), frames=frames
    )
    found = family.draw(drawing, torch.Generator().manual_seed(1), lambda: None)
    expected = pipe(
        prompt="a cat",
        guidance_scale=6.0,
        num_inference_steps=2,
        width=96,
        height=64,
        num_frames=frames,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    assert found.shape == (frames, 64, 96, 3)
    assert np.array_equal(found, np.stack([np.asarray(image) for image in expected]))


@pytest.mark.parametrize(
    "file, key, value, message",
    [
        ("tokenizer/tokenizer_config.json", "pad_token", None, "no pad_token"),
        ("scheduler/scheduler_config.json", "use_dynamic_shifting", True, "use_dynamic_shifting"),
    ],
)
def test_what_could_not_be_used_is_refused_at_once(folder, tmp_path, file, key, value, message):
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=message):
        load_family(model, copy)
