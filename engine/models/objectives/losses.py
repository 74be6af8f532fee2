"""Compute the training loss of one micro-batch, for any objective."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.models.family import Batch, autocast
from engine.models.objectives.objective import LossOptions, Objective

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps noisy latents and their time (`Objective.model_time`) to the prediction, which has the latents' shape."""


def training_loss(
    objective: Objective, denoise: Denoise, batch: Batch, options: LossOptions, dtype: torch.dtype
) -> torch.Tensor:
    """Return the loss of one micro-batch: a float32 scalar.

    Args:
        objective: adds noise, and defines the target and the weights.
        denoise: called under autocast, with noisy latents of `dtype` and their time.
        batch: on the device; its conditioning is not used.
        options: the task's loss options.
        dtype: the dtype of the frozen weights and of autocast.
    """
    noisy = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    # A new context for each micro-batch: after an optimizer step, autocast's cache would hold stale weights.
    time = objective.model_time(batch.latents, batch.timesteps)
    with autocast(noisy.device, dtype):
        prediction = denoise(noisy.to(dtype), time)
    target = objective.target(batch.latents, batch.noise, batch.timesteps)
    weights = objective.weights(batch.timesteps, options)
    errors = objective.errors(batch.latents, batch.timesteps, options)
    return mean_error(prediction, target, weights, errors=errors, mask=batch.mask)


def mean_error(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    errors: Callable[[torch.Tensor], torch.Tensor] = torch.square,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean over the batch of each sample's (weighted) mean error: a float32 scalar.

    Args:
        prediction: any floating dtype, shape (B, …); it is converted to float32.
        target: like `prediction`.
        weights: float32, shape (B,); None weights all samples equally.
        errors: maps differences to errors, elementwise; see `Objective.errors`.
        mask: weights of positions, float32, 0 to 1, broadcastable to `prediction`; None weights all positions equally.
            The mean is over all positions: a masked position has no gradient and counts as error 0.
    """
    assert prediction.shape == target.shape, (prediction.shape, target.shape)
    found = errors(prediction.to(torch.float32) - target.to(torch.float32))
    if mask is not None:
        found = found * mask
    samples = found.reshape(len(prediction), -1).mean(dim=1)
    return (samples if weights is None else samples * weights).mean()


def offset_noise(noise: torch.Tensor, scale: float, offsets: torch.Tensor) -> torch.Tensor:
    """Return noise with a random shift of each channel, with which a model learns very dark and very bright images.

    Guttenberg 2023, "Diffusion with offset noise" (crosslabs.org).

    Args:
        noise: shape (B, C, …).
        scale: the shift's standard deviation; 0.1 in the source.
        offsets: standard normal numbers, shape (B, C).
    """
    assert offsets.shape == noise.shape[:2], (offsets.shape, noise.shape)
    return noise + scale * offsets.reshape(*offsets.shape, *[1] * (noise.ndim - 2))
