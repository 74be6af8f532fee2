"""Predict the memory of a model with CLIP text encoders, a UNet and an `AutoencoderKL`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.models.parts.clip.tokens import num_chunks
from engine.models.parts.footprints import clip, vae
from engine.models.parts.footprints.unet import unet
from engine.models.spec import Configs, Footprint, Workload

_CLIP_LENGTH: Final = 77


def footprint(config: Configs, workload: Workload, *, text_encoders: Sequence[str], has_float32_vae: bool) -> Footprint:
    """Record a training step on the workload's tapes, as specified by `FamilySpec.footprint`.

    Args:
        config: the base model's configurations.
        workload: its tapes are filled in.
        text_encoders: the names of the text encoders' components.
        has_float32_vae: True if the VAE is in float32 whatever the task's precision.
    """
    side = max(1, workload.resolution // vae.reduction(config("vae")))
    lengths, chunks = [_CLIP_LENGTH], num_chunks(workload.caption_tokens)
    for component in text_encoders:
        found = config(component)
        rows = workload.batch * chunks
        clip.text_encoder(found, workload.text_encoders, batch=rows)
        lengths.append(int(found.get("max_position_embeddings", _CLIP_LENGTH)))
    unet(
        config("unet"),
        workload.denoiser,
        batch=workload.batch,
        side=side,
        text_length=max(lengths) * chunks,
        text_is_traced=workload.trains_text_encoders,
    )
    width = 4 if has_float32_vae else workload.value_bytes
    return Footprint(images=vae.image_encoder(config("vae"), workload.resolution, width))
