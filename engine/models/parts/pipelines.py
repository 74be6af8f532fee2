"""Draw images with Diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
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

    def each_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after_step()
        return tensors

    width, height = drawing.size
    pipeline.set_progress_bar_config(disable=True)
    if arguments is None:
        arguments = {name: getattr(drawing, name) for name in ("prompt", "negative_prompt", "guidance_scale")}
    with decoding_in_tiles(pipeline.vae) if "num_frames" in arguments else nullcontext():
        found = pipeline(
            **arguments,
            height=height,
            width=width,
            num_inference_steps=drawing.num_inference_steps,
            generator=generator,
            callback_on_step_end=each_step,
        )
    images = found.images if "images" in found else found.frames[0]
    return np.stack([np.asarray(image) for image in images])


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
