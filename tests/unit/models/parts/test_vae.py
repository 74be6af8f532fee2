"""Latents: the VAE's moments, and draws from them."""

import numpy as np
import torch

from engine.task.plan.extent import Extent
from tests.unit.models.families.test_every_family import picture


def test_moments_are_the_vaes(full):
    vae, pixels = full.pipeline.vae, picture(0)
    image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
    found = full.encode_pixels(pixels)
    torch.testing.assert_close(found["mean"], posterior.mean[0])
    torch.testing.assert_close(found["logvar"], posterior.logvar[0])
    assert found["mean"].shape == full.latent_shape(Extent(64, 64)) == (4, 8, 8)


def test_latents_are_drawn_from_the_posterior_and_scaled(full):
    moments = {"mean": torch.full((4, 2, 2), 3.0), "logvar": torch.full((4, 2, 2), 2 * np.log(5.0))}
    noise = torch.linspace(-1, 1, 16).reshape(4, 2, 2)
    latents = full.sample_latents(moments, noise)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, (3 + 5 * noise) * full.pipeline.vae.config.scaling_factor)
