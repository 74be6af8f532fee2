"""What families with a pipeline of Diffusers' promise, on a tiny real one of each."""

import json

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.unit.models.families.test_every_family import load, picture

BUILDERS = {"StableDiffusionPipeline": tiny.build_sd, "StableDiffusionXLPipeline": tiny.build_sdxl}


@pytest.fixture(scope="module", params=list(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return BUILDERS[name](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def full(folder):
    return load(folder)


def test_moments_are_the_vaes(full):
    vae, pixels = full.pipeline.vae, picture(0)
    image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
    found = full.encode_image(pixels)
    torch.testing.assert_close(found["mean"], posterior.mean[0])
    torch.testing.assert_close(found["logvar"], posterior.logvar[0])
    assert found["mean"].shape == full.latent_shape(64, 64) == (4, 8, 8)


def test_latents_are_drawn_from_the_posterior_and_scaled(full):
    moments = {"mean": torch.full((4, 2, 2), 3.0), "logvar": torch.full((4, 2, 2), 2 * np.log(5.0))}
    noise = torch.linspace(-1, 1, 16).reshape(4, 2, 2)
    latents = full.sample_latents(moments, noise)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, (3 + 5 * noise) * full.pipeline.vae.config.scaling_factor)


def test_a_half_precision_model_is_loaded_in_full_precision(name, tmp_path):
    """Its text encoders' configurations say float16."""
    folder = BUILDERS[name](tmp_path / "model", variant="fp16", only_variant=True)
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    for module in load(folder, variant="fp16").parts.values():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_the_pipeline_is_the_models_and_consists_of_the_loaded_parts(full, name):
    pipeline = full.pipeline
    assert type(pipeline).__name__ == name
    found = {part: module for part, module in pipeline.components.items() if isinstance(module, torch.nn.Module)}
    assert found == full.parts


def test_the_scheduler_predicts_what_the_training_predicts(folder):
    assert load(folder, prediction_type="v_prediction").pipeline.scheduler.config.prediction_type == "v_prediction"
