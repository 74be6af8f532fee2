"""Predict the memory of a model with CLIP text encoders, a UNet and an `AutoencoderKL`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.models.parts import clip_footprint, unet_footprint, vae_footprint
from engine.models.parts.clip_tokens import num_chunks
from engine.models.spec import Configs, ImageEncoder, Workload

_CLIP_LENGTH: Final = 77


def footprint(
    config: Configs, workload: Workload, *, text_encoders: Sequence[str], has_float32_vae: bool
) -> ImageEncoder:
    """Record a training step on the workload's tapes, as specified by `FamilySpec.footprint`.

    Args:
        config: the base model's configurations.
        workload: its tapes are filled in.
        text_encoders: the names of the text encoders' components.
        has_float32_vae: True if the VAE is in float32 whatever the task's precision.
    """
    vae = config("vae")
    side = max(1, workload.resolution // 2 ** (len(vae["block_out_channels"]) - 1))
    lengths, chunks = [_CLIP_LENGTH], num_chunks(workload.caption_tokens)
    for component in text_encoders:
        found = config(component)
        rows = workload.batch * chunks
        clip_footprint.text_encoder(found, workload.text_encoders, batch=rows)
        lengths.append(int(found.get("max_position_embeddings", _CLIP_LENGTH)))
    unet_footprint.unet(
        config("unet"),
        workload.denoiser,
        batch=workload.batch,
        side=side,
        text_length=max(lengths) * chunks,
        text_is_traced=workload.trains_text_encoders,
    )
    width = 4 if has_float32_vae else workload.value_bytes
    parameters = vae_footprint.vae_parameters(vae)
    return ImageEncoder(
        parameters=parameters,
        weight_bytes=parameters * width,
        encode_bytes=vae_footprint.vae_peak(vae, workload.resolution, width, decode=False),
        decode_bytes=vae_footprint.vae_peak(vae, workload.resolution, width, decode=True),
    )
