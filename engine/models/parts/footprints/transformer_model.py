"""Predict the memory of a model with a transformer and text encoders of which some are never trained. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from engine.models.parts.footprints import clip, vae
from engine.models.parts.tape import Config, Tape
from engine.models.spec import Configs, Footprint, ImageEncoder, TextEncoder, Workload

_VAE_WIDTH: Final = 4
"""Bytes of the VAE's values: these families load it in float32."""


class Transformer(Protocol):
    """Records a transformer on `batch` latents of `side` x `side`, with `text_length` tokens of text each."""

    def __call__(self, config: Config, tape: Tape, /, *, batch: int, side: int, text_length: int) -> None: ...


class Encoder(Protocol):
    """Returns the footprint of a text encoder on one caption of `length` tokens."""

    def __call__(self, config: Config, /, *, length: int, value_bytes: int, is_float16: bool) -> TextEncoder: ...


def footprint(
    config: Configs,
    workload: Workload,
    *,
    transformer: Transformer,
    encoders: Mapping[str, Encoder],
    trained_encoders: Sequence[str] = (),
    more_tokens: int = 0,
    images: Callable[[Config, int, int], ImageEncoder] = vae.image_encoder,
    reduction: Callable[[Config], int] = vae.reduction,
) -> Footprint:
    """Record a training step on the workload's tapes, as specified by `FamilySpec.footprint`.

    Args:
        config: the base model's configurations.
        workload: its tapes are filled in.
        transformer: the walker of the component `transformer`.
        encoders: the text encoders that are never trained, by component; those that the base model lacks are left out.
        trained_encoders: the CLIP text encoders that can be trained, by component.
        more_tokens: tokens of text that the transformer gets besides `Workload.caption_tokens`.
        images: the walker of the component `vae`, called with the resolution and the bytes of a value.
        reduction: pixels of a side in one position of the VAE's latents.
    """
    for component in trained_encoders:
        clip.text_encoder(config(component), workload.text_encoders, batch=workload.batch)
    workload.denoiser.is_traced = workload.trains_text_encoders
    transformer(
        config("transformer"),
        workload.denoiser,
        batch=workload.batch,
        side=max(1, workload.resolution // reduction(config("vae"))),
        text_length=workload.caption_tokens + more_tokens,
    )
    return Footprint(
        images=images(config("vae"), workload.resolution, _VAE_WIDTH),
        encoders=tuple(
            encoder(
                found,
                length=workload.caption_tokens,
                value_bytes=workload.value_bytes,
                is_float16=workload.is_float16,
            )
            for component, encoder in encoders.items()
            if (found := config(component))
        ),
    )
