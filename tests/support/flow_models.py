"""Loaded families of flow matching beside Diffusers' own pipelines, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from engine.models.family import Batch, Family, LoadArgs
from engine.task.plan.extent import Extent
from tests.support.pipelines import in_own_memory

CPU = torch.device("cpu")


def load_family(model: Any, folder: Path, **options: Any) -> Any:
    """Load the family of a module `engine.models.families.<family>.model` from a folder, in float32."""
    variants = dict.fromkeys(model.SPEC.weighted)
    defaults = {"caption_tokens": model.SPEC.caption_tokens.usual, "prediction_type": "flow"}
    args = {"folder": folder, "variants": variants, "dtype": torch.float32, "device": CPU, **defaults, **options}
    return model.load(LoadArgs(**args))


def plain_pipeline(folder: Path) -> DiffusionPipeline:
    """Diffusers alone."""
    return in_own_memory(DiffusionPipeline.from_pretrained(folder))


def batch_of(family: Family, captions: list[str], height: int = 64, width: int = 96, frames: int = 1) -> Batch:
    """A micro-batch with random latents and noise, at a timestep of its own for each caption."""
    shape, draw = family.latent_shape(Extent(width, height, frames)), torch.Generator().manual_seed(0)
    rows = [family.encode_caption(caption) for caption in captions]
    return Batch(
        latents=torch.randn(len(rows), *shape, generator=draw),
        noise=torch.randn(len(rows), *shape, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[: len(rows)],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def noised(family: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise levels of a batch, and (1 - σ) x₀ + σ ε."""
    sigmas = family.objective.model_time(batch.latents, batch.timesteps)
    wide = sigmas.reshape(-1, *[1] * (batch.latents.ndim - 1))
    return sigmas, (1.0 - wide) * batch.latents + wide * batch.noise
