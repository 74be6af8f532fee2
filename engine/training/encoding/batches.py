"""Examples to a micro-batch on the device: all that the host does for one, so that it can be done ahead of time.

Everything drawn is addressed by visits, so when it is drawn changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.core import rng
from engine.models.family import PRECISIONS, Batch, Family, Tensors, autocast
from engine.models.objectives.losses import offset_noise
from engine.task.task import Task
from engine.training.encoding.visit_encoder import Example


@dataclass(frozen=True, slots=True)
class Prepared:
    """A micro-batch that waits for nothing but what trained text encoders make of its captions."""

    examples: Sequence[Example]
    batch: Batch
    tokens: Tensors
    """On the device; empty where no text encoder is trained."""

    @property
    def address(self) -> int:
        """The number of the first visit."""
        return self.examples[0].visit.number

    def is_of(self, examples: Sequence[Example]) -> bool:
        """Whether it was made of these very examples."""
        return list(map(id, self.examples)) == list(map(id, examples))


class BatchMaker:
    """Makes the micro-batches of one training."""

    def __init__(self, task: Task, family: Family, device: torch.device) -> None:
        self._task = task
        self._family = family
        self._device = device

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Stack a micro-batch's examples, with their addressed noise drawn, on the device: the same whatever is
        trained meanwhile. Copies to a GPU wait for their turn, the host does not wait for them.
        """
        seed, args = self._task.seed, self._task.train_args
        width, height = examples[0].visit.size(args.resolution)
        shape = self._family.latent_shape(height, width)
        numbers = [example.visit.number for example in examples]
        latents = [
            self._family.sample_latents(example.moments, _normal(seed, "vae posterior", number, shape))
            for example, number in zip(examples, numbers, strict=True)
        ]
        noise = torch.stack([_normal(seed, "noise", number, shape) for number in numbers])
        if args.noise_offset:
            offsets = torch.stack([_normal(seed, "noise offset", number, shape[:1]) for number in numbers])
            noise = offset_noise(noise, args.noise_offset, offsets)
        mask = None
        if "mask" in examples[0].moments:
            mask = _copied(torch.stack([example.moments["mask"] for example in examples]), self._device)
        batch = Batch(
            latents=_copied(torch.stack(latents), self._device),
            noise=_copied(noise, self._device),
            timesteps=_copied(torch.tensor([example.visit.timestep for example in examples]), self._device),
            conditioning=_stack([example.conditioning for example in examples], self._device),
            mask=mask,
        )
        return Prepared(examples, batch, _stack([example.tokens for example in examples], self._device))

    def complete(self, prepared: Prepared) -> Batch:
        """The micro-batch, its captions encoded by text encoders that are trained, as they now are."""
        if not prepared.tokens:
            return prepared.batch
        dtype = PRECISIONS[self._task.mixed_precision]
        # A context for each micro-batch, as around the denoiser: autocast's cache must not outlive a step.
        with autocast(self._device, dtype):
            embedded = self._family.embed(prepared.tokens)
        return replace(prepared.batch, conditioning=prepared.batch.conditioning | embedded)


def _stack(samples: Sequence[Tensors], device: torch.device) -> Tensors:
    """Samples of equal keys and shapes as one batch on the device."""
    return {name: _copied(torch.stack([sample[name] for sample in samples]), device) for name in samples[0]}


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device. To a GPU from pinned memory: else the host would wait for all that is under way."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _normal(seed: int, stream: str, address: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.normal(seed, stream, address, shape))
