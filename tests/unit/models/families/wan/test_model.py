"""Wan on tiny real pipelines, against Diffusers' own functions."""

import json
import shutil

import numpy as np
import pytest
import torch

from engine.core.errors import ModelError
from engine.models.components import locating
from engine.models.families.wan import model
from engine.models.family import Drawing
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from engine.task.task import Model
from tests.support.flow_models import batch_of, load_family, noised, plain_pipeline
from tests.support.tiny_wan import VAES, build_wan

CAPTIONS = ["", "the cat", "a cat" * 120, "ünïcödé 猫 <pad> </s>", " a  &amp;amp; b\n&lt;c&gt; "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_wan(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder):
    return load_family(model, folder)


@pytest.fixture(scope="module")
def pipe(folder):
    return plain_pipeline(folder)


@pytest.mark.parametrize("length", [512, 60])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_those_of_the_pipeline(folder, pipe, caption, length):
    """Without ftfy, which the pipeline also calls where it is installed."""
    found = load_family(model, folder, caption_tokens=length).encode_caption(caption)["encoder_hidden_states"]
    with torch.no_grad():
        states, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
    assert torch.equal(found, states[0])
    assert found.shape[0] == length and (found[-1] == 0).all() == (len(caption) < 60)


@pytest.mark.parametrize("version", VAES)
def test_latents_are_those_of_the_vae_and_normalised_after_they_are_drawn(tmp_path, version):
    family = load_family(model, build_wan(tmp_path / "model", version=version))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    vae = plain_pipeline(tmp_path / "model").vae
    moments, noise = family.encode_pixels(pixels), torch.randn(family.latent_shape(Extent(96, 64, 9)))
    clip = torch.from_numpy(pixels / 127.5 - 1).permute(3, 0, 1, 2).to(torch.float32)
    with torch.no_grad():
        posterior = vae.encode(clip[None]).latent_dist
    drawn = (posterior.mean + posterior.std * noise)[0]
    mean, deviation = (torch.tensor(vae.config[key])[:, None, None, None] for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(family.sample_latents(moments, noise), (drawn - mean) / deviation)
    assert drawn.shape == ((4, 3, 8, 12) if version == "2.1" else (4, 3, 4, 6))


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("version", VAES)
def test_the_loss_is_what_the_pipeline_would_be_asked(tmp_path, version, frames):
    """Its transformer, called as `WanPipeline.__call__` does: 2.2's is told the noise level of each token."""
    folder = build_wan(tmp_path / "model", version=version)
    family, pipe = load_family(model, folder), plain_pipeline(folder)
    captions = ["a cat", "a long caption of many words"]
    batch = batch_of(family, captions, frames=frames)
    sigmas, noisy = noised(family, batch)
    times = sigmas * 1000
    if pipe.config.expand_timesteps:
        times = times[:, None].expand(-1, noisy[0, 0, :, ::2, ::2].numel())
    with torch.no_grad():
        states, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)
        velocity = pipe.transformer(hidden_states=noisy, timestep=times, encoder_hidden_states=states).sample
    expected = (velocity - (batch.noise - batch.latents)).square().mean()
    torch.testing.assert_close(family.loss(batch, LossOptions()), expected)


def test_what_the_class_keeps_in_float32_is_computed_in_it(folder):
    """The embedding of the time, also under autocast, whose result the layers after it get in 16 bits."""
    family = load_family(model, folder, dtype=torch.bfloat16)
    seen = []
    embedder = family.denoiser.condition_embedder.time_embedder
    embedder.linear_2.register_forward_hook(lambda module, args, found: seen.append((args[0].dtype, found.dtype)))
    family.denoiser.condition_embedder.time_proj.register_forward_hook(
        lambda module, args, found: seen.append(found.dtype)
    )
    family.loss(batch_of(family, ["a cat"]), LossOptions())
    assert seen == [(torch.float32, torch.float32), torch.bfloat16]


@pytest.mark.parametrize(
    "version, scheduler, frames, guidance",
    [
        ("2.1", "UniPC", 9, 5.0),
        ("2.2-5B", "UniPC", 5, 1.0),
        pytest.param("2.1", "Euler", 1, 1.0, marks=pytest.mark.slow),
        pytest.param("2.1", "Euler", 9, 5.0, marks=pytest.mark.slow),
        pytest.param("2.2-5B", "UniPC", 9, 5.0, marks=pytest.mark.slow),
    ],
)
def test_clips_are_those_of_the_pipeline(tmp_path, version, scheduler, frames, guidance):
    folder = build_wan(tmp_path / "model", version=version, scheduler=scheduler)
    drawing = Drawing(
        prompt="a  cat &amp; more",
        negative_prompt="a dog",
        guidance_scale=guidance,
        num_inference_steps=3,
        size=(96, 64),
        frames=frames,
    )
    found = load_family(model, folder).draw(drawing, torch.Generator().manual_seed(5), lambda: None)
    expected = plain_pipeline(folder)(
        drawing.prompt,
        negative_prompt="a dog",
        guidance_scale=guidance,
        num_inference_steps=3,
        width=96,
        height=64,
        num_frames=frames,
        generator=torch.Generator().manual_seed(5),
        output_type="pil",
    ).frames[0]
    assert np.array_equal(found, np.stack([np.asarray(frame) for frame in expected]))


def test_modules_have_the_original_names_in_web_interfaces(family):
    names = {
        name: family.webui_name("transformer", name).removeprefix("diffusion_model.")
        for name, module in family.denoiser.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert names["blocks.1.attn1.to_q"] == "blocks.1.self_attn.q"
    assert names["blocks.0.attn2.to_out.0"] == "blocks.0.cross_attn.o"
    assert names["blocks.0.ffn.net.0.proj"] == "blocks.0.ffn.0" and names["blocks.0.ffn.net.2"] == "blocks.0.ffn.2"
    assert names["condition_embedder.time_proj"] == "time_projection.1" and names["proj_out"] == "head.head"
    assert len({*names.values()}) == len(names) == 2 * (4 + 4 + 2) + 6


def test_a_model_with_two_denoisers_is_refused(folder, tmp_path):
    """Wan 2.2 A14B has the same pipeline."""
    copy = shutil.copytree(folder, tmp_path / "model")
    shutil.copytree(copy / "transformer", copy / "transformer_2")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"transformer_2": index["transformer"]}))
    with pytest.raises(ModelError, match="two denoisers"):
        locating.locate(Model(name=str(copy)), pinned=None, weights=True, report=print, cache_dir=tmp_path)


def test_a_scheduler_that_needs_the_size_is_refused(tmp_path):
    folder = build_wan(tmp_path / "model", scheduler="Euler")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(ModelError, match="set it to false"):
        load_family(model, folder)
