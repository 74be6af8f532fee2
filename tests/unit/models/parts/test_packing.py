"""Tokens of packed latents, against Diffusers' own."""

import pytest
import torch
from diffusers import FluxPipeline

from engine.models.parts.packing import image_ids, pack, unpack

SHAPES = [(2, 16, 8, 8), (1, 4, 2, 6), (3, 1, 12, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_of_the_pipeline(shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batch, channels, height, width = shape
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, batch, channels, height, width))
    assert torch.equal(unpack(tokens, height, width), latents)


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_those_of_the_pipeline(shape):
    height, width = shape[2:]
    expected = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, torch.device("cpu"), torch.float32)
    found = image_ids(height, width, torch.device("cpu"))
    assert torch.equal(found, expected) and found.dtype == torch.float32
