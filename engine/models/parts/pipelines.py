"""Draw images with Diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.models.family import Drawing, Tensors
from engine.models.parts.video_vae import decoding_in_tiles


@torch.no_grad()
def draw(
    pipeline: Any,
    drawing: Drawing,
    generator: torch.Generator,
    after_step: Callable[[], None],
    arguments: Mapping[str, Any] | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw one image or clip, as specified by `Family.draw`, with a pipeline that is made of the family's parts.

    `arguments` are the pipeline's keyword arguments for prompts and guidance, and for clips the number of frames; None
    gives it the drawing's prompts and guidance as they are. Clips are decoded in tiles (`decoding_in_tiles`).
    """

    latest: dict[str, torch.Tensor] = {}

    def each_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latest.update(tensors)
        after_step()
        return tensors

    width, height = drawing.size
    pipeline.set_progress_bar_config(disable=True)
    if arguments is None:
        arguments = {name: getattr(drawing, name) for name in ("prompt", "negative_prompt", "guidance_scale")}
    tiles = decoding_in_tiles(pipeline.vae) if "num_frames" in arguments else nullcontext()
    with tiles, _decoded_parts(pipeline.vae) as decoded:
        found = pipeline(
            **arguments,
            height=height,
            width=width,
            num_inference_steps=drawing.num_inference_steps,
            generator=generator,
            callback_on_step_end=each_step,
        )
    if not _are_finite(torch.isfinite(one).all() for one in latest.values()):
        drawing.not_finite("denoiser")
    elif not _are_finite(decoded):
        drawing.not_finite("VAE")
    images = found.images if "images" in found else found.frames[0]
    return np.stack([np.asarray(image) for image in images])


@contextmanager
def _decoded_parts(vae: Any) -> Iterator[list[torch.Tensor]]:
    """Return a context with a list to which a boolean is added for each part that the VAE decodes: is it finite?

    The booleans stay on the device, so that decoding does not wait for them.
    """
    found: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        pixels = output[0] if isinstance(output, tuple) else output  # that of CogVideoX returns its cache, too
        found.append(torch.isfinite(pixels).all())

    hook = vae.decoder.register_forward_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def _are_finite(parts: Iterable[torch.Tensor]) -> bool:
    return all(map(bool, parts))


def encoding_chunks(base: Any, encode: Callable[[str], Tensors], names: tuple[str, ...]) -> Any:
    """Return a pipeline class that encodes its prompts with `encode`, like captions of several chunks.

    Args:
        base: the pipeline's class in Diffusers.
        encode: returns a prompt's conditioning, without a batch axis.
        names: the tensors of the conditioning in the order of `base.encode_prompt`, which returns each for the prompt
            and then for the negative prompt.
    """

    class ChunkedPipeline(base):  # type: ignore[misc]  # Diffusers is not typed
        def encode_prompt(
            self,
            prompt: str,
            device: torch.device,
            num_images_per_prompt: int = 1,
            do_classifier_free_guidance: bool = True,
            negative_prompt: str | None = None,
            **_: Any,
        ) -> tuple[torch.Tensor, ...]:
            found, other = encode(prompt), encode(negative_prompt or "")
            if negative_prompt is None and self.config.get("force_zeros_for_empty_prompt"):
                other = {name: torch.zeros_like(tensor) for name, tensor in other.items()}
            return tuple(own[name][None].to(device) for name in names for own in (found, other))

    return ChunkedPipeline
