"""Make micro-batches on the device from encoded visits, if possible ahead of time.

Everything random is addressed by visits, so the bits do not depend on when it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.core import rng
from engine.models.family import Batch, Family, Tensors, autocast
from engine.models.objectives.losses import offset_noise
from engine.task.plan.extent import Extent
from engine.training.encoding.visit_encoder import Example


@dataclass(frozen=True, slots=True)
class Prepared:
    """A micro-batch on the device, without the conditioning from trained text encoders."""

    examples: Sequence[Example]
    batch: Batch
    tokens: Tensors
    """The captions' token ids, on the device; empty if no text encoder is trained."""

    @property
    def address(self) -> int:
        """The number of the first visit."""
        return self.examples[0].visit.number

    def is_of(self, examples: Sequence[Example]) -> bool:
        """Return whether it was made from exactly these examples."""
        return list(map(id, self.examples)) == list(map(id, examples))


class BatchMaker:
    """Makes the micro-batches of one training."""

    def __init__(
        self,
        family: Family,
        device: torch.device,
        *,
        dtype: torch.dtype,
        seed: int,
        extent: Extent,
        noise_offset: float = 0.0,
    ) -> None:
        """
        Args:
            dtype: the dtype in which trained text encoders compute.
            seed: the task's seed: with a visit's number it addresses everything random.
            extent: the size of a visit without a bucket.
            noise_offset: the weight of noise that is constant over each channel.
        """
        self._family = family
        self._device = device
        self._dtype = dtype
        self._seed = seed
        self._extent = extent
        self._noise_offset = noise_offset

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Stack the examples of a micro-batch on the device, with their addressed noise.

        The result does not depend on the trained parameters. The host does not wait for copies to a GPU.
        """
        shape = self._family.latent_shape(examples[0].visit.bucket or self._extent)
        numbers = [example.visit.number for example in examples]
        latents = [
            self._family.sample_latents(example.moments, normal(self._seed, "vae posterior", number, shape))
            for example, number in zip(examples, numbers, strict=True)
        ]
        noise = torch.stack([normal(self._seed, "noise", number, shape) for number in numbers])
        if self._noise_offset:
            offsets = torch.stack([normal(self._seed, "noise offset", number, shape[:1]) for number in numbers])
            noise = offset_noise(noise, self._noise_offset, offsets)
        mask = None
        if "mask" in examples[0].moments:
            mask = copied(torch.stack([example.moments["mask"] for example in examples]), self._device)
        batch = Batch(
            latents=copied(torch.stack(latents), self._device),
            noise=copied(noise, self._device),
            timesteps=copied(torch.tensor([example.visit.timestep for example in examples]), self._device),
            conditioning=stacked([example.conditioning for example in examples], self._device),
            mask=mask,
        )
        return Prepared(examples, batch, stacked([example.tokens for example in examples], self._device))

    def complete(self, prepared: Prepared) -> Batch:
        """Return the micro-batch, with its captions encoded by the current text encoders if these are trained."""
        if not prepared.tokens:
            return prepared.batch
        embedded = embed_captions(self._family, prepared.tokens, self._dtype, self._device)
        return replace(prepared.batch, conditioning=prepared.batch.conditioning | embedded)


def embed_captions(family: Family, tokens: Tensors, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Return the current text encoders' conditioning for a batch of token ids on the device."""
    # One context per micro-batch, as for the denoiser: autocast's cache must not outlive a step.
    with autocast(device, dtype):
        return family.embed(tokens)


def stacked(samples: Sequence[Tensors], device: torch.device) -> Tensors:
    """Stack samples of equal keys and shapes to one batch on the device."""
    return {name: copied(torch.stack([sample[name] for sample in samples]), device) for name in samples[0]}


def copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to the device: for a GPU from pinned memory, so that the host need not wait for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def normal(seed: int, stream: str, address: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the standard normal numbers at an address: float32, of the given shape, on the CPU."""
    return torch.from_numpy(rng.normal(seed, stream, address, shape))
