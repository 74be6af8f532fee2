"""Latents of clips, by an invented VAE whose moments are known."""

from types import SimpleNamespace

import numpy as np
import torch

from engine.models.parts.video_vae import VideoLatents
from engine.task.plan.extent import Extent


class Moments:
    """A VAE that gives each channel's pixels as the mean of its latents."""

    device, dtype = torch.device("cpu"), torch.float64

    def encode(self, clip):
        assert clip.is_contiguous() and clip.dtype == self.dtype
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=clip, logvar=clip - 1))


def test_a_clip_is_encoded_with_channels_first_from_minus_1_to_1():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    found = VideoLatents(Moments(), channels=3, side=1, frames=1).encode(pixels)
    assert found["mean"].shape == (3, 5, 4, 6) and found["mean"].dtype == torch.float64
    np.testing.assert_allclose(found["mean"][1, 2].numpy(), pixels[2, :, :, 1] / 127.5 - 1, atol=1e-6)
    assert torch.equal(found["logvar"], found["mean"] - 1)


def test_the_first_frame_has_latents_of_its_own():
    latents = VideoLatents(Moments(), channels=7, side=8, frames=4)
    assert [latents.shape(Extent(64, 32, frames))[1] for frames in (1, 5, 81)] == [1, 2, 21]
    assert latents.shape(Extent(64, 32, 9)) == (7, 3, 4, 8)


def test_latents_are_normalised_after_they_were_drawn():
    """The noise of the posterior is divided by the channels' deviation as its mean is."""
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0])
    latents = VideoLatents(Moments(), channels=2, side=8, frames=4, scale=3.0, mean=mean, deviation=deviation)
    moments = {"mean": torch.full((2, 1, 1, 1), 5.0), "logvar": torch.full((2, 1, 1, 1), 2 * np.log(6.0))}
    found = latents.sample(moments, torch.full((2, 1, 1, 1), 0.5))
    torch.testing.assert_close(found.flatten(), (5 + 6 * 0.5 - mean) * 3 / deviation)
    plain = VideoLatents(Moments(), channels=2, side=8, frames=4)
    torch.testing.assert_close(plain.sample(moments, torch.zeros(2, 1, 1, 1)), moments["mean"])
