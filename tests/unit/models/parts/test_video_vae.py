"""Latents of clips, by an invented VAE whose moments are known; clips decoded in tiles, as Diffusers' pipelines do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.models.families.cogvideox import model as cogvideox
from engine.models.families.hunyuan_video import model as hunyuan_video
from engine.models.families.ltx import model as ltx
from engine.models.families.wan import model as wan
from engine.models.family import Drawing
from engine.models.parts.video_vae import VideoLatents, decoding_in_tiles
from engine.task.plan.extent import Extent
from tests.support.flow_models import load_family, plain_pipeline
from tests.support.tiny_cogvideox import TEXT_LENGTH, build_cogvideox
from tests.support.tiny_hunyuan_video import build_hunyuan_video
from tests.support.tiny_ltx import build_ltx
from tests.support.tiny_wan import build_wan

SIDES = ("height", "width")
SMALL = {f"tile_sample_min_{side}": 64 for side in SIDES} | {f"tile_sample_stride_{side}": 32 for side in SIDES}
TILED = {
    "ltx": (ltx, build_ltx, {}, SMALL, 9),
    "wan": (wan, build_wan, {}, SMALL, 5),
    "cogvideox": (
        cogvideox,
        build_cogvideox,
        {"prediction_type": "v_prediction", "caption_tokens": TEXT_LENGTH},
        {},  # its configuration has small tiles
        1,
    ),
    "hunyuan_video": (hunyuan_video, build_hunyuan_video, {}, SMALL, 5),
}
"""Family -> its module, a builder of a tiny model, how it is loaded, tiles of its VAE, and frames of a clip."""


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


@pytest.fixture(scope="module", params=TILED)
def tiled(request, tmp_path_factory):
    """A family, Diffusers' pipeline of the same model, and the size of a clip that is larger than a tile."""
    module, build, options, tiles, frames = TILED[request.param]
    folder = build(tmp_path_factory.mktemp("model"))
    family, pipe = load_family(module, folder, **options), plain_pipeline(folder)
    for vae in (family.parts["vae"], pipe.vae):
        vars(vae).update(tiles)
    return family, pipe, Extent(96, 64, frames)


def test_a_clip_is_drawn_in_tiles_as_by_diffusers(tiled):
    """With the same bytes again, and it is encoded as before."""
    family, pipe, clip = tiled
    own = {"num_inference_steps": 2, "guidance_scale": 1.0}
    drawing = Drawing(prompt="a cat", negative_prompt=None, size=clip.size, frames=clip.frames, **own)
    prompts = family.pipeline_arguments(drawing)
    pixels = np.random.default_rng(0).integers(0, 256, (clip.frames, 64, 96, 3), dtype=np.uint8)
    moments = family.encode_pixels(pixels)
    found, again = (family.draw(drawing, torch.Generator().manual_seed(1), lambda: None) for _ in range(2))
    size = {"width": clip.width, "height": clip.height, "num_inference_steps": 2, "output_type": "np"}
    whole = pipe(**prompts | size, generator=torch.Generator().manual_seed(1)).frames[0]
    pipe.vae.enable_tiling()
    expected = pipe(**prompts | size, generator=torch.Generator().manual_seed(1)).frames[0]
    assert np.array_equal(found, (expected * 255).round().astype(np.uint8)) and np.array_equal(again, found)
    assert not np.array_equal(found, (whole * 255).round().astype(np.uint8))
    assert all(torch.equal(tensor, moments[name]) for name, tensor in family.encode_pixels(pixels).items())


def test_a_clip_no_larger_than_a_tile_is_decoded_as_a_whole(tiled):
    vae = tiled[0].parts["vae"]
    latents = torch.randn(1, *tiled[0].latent_shape(Extent(64, 32, 1)))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        with decoding_in_tiles(vae):
            assert torch.equal(vae.decode(latents).sample, whole)


def test_tiles_are_switched_off_after_an_error(tiled):
    vae = tiled[0].parts["vae"]
    with pytest.raises(RuntimeError), decoding_in_tiles(vae):
        assert vae.use_tiling
        raise RuntimeError
    assert not vae.use_tiling
