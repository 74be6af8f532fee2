"""The probabilities of timesteps, against closed forms and Diffusers' own draws."""

import math

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from engine.task.plan import timestep_density

DRAWS = 400_000


def drawn(scheme, total, **options):
    """How often Diffusers' trainers draw each noise level, from the least noise to the most."""
    u = compute_density_for_timestep_sampling(scheme, DRAWS, generator=torch.Generator().manual_seed(0), **options)
    # The scripts index scheduler.timesteps, which begin with the most noise.
    counts = torch.bincount((u * total).long().clamp(0, total - 1), minlength=total)
    return counts.flip(0).numpy() / DRAWS


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.5, 0.6), (-1.5, 1.0), (0.0, 3.0)])
def test_logit_normal_is_what_diffusers_scripts_draw(mean, std):
    found = np.array(timestep_density.logit_normal(50, mean, std))
    other = drawn("logit_normal", 50, logit_mean=mean, logit_std=std)
    assert np.abs(found - other).max() < 4 * math.sqrt(found.max() / DRAWS)
    assert np.abs(found.cumsum() - other.cumsum()).max() < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.29, 1.75])
def test_mode_is_what_diffusers_scripts_draw(scale):
    found = np.array(timestep_density.mode(50, scale))
    other = drawn("mode", 50, mode_scale=scale)
    assert np.abs(found - other).max() < 4 * math.sqrt(found.max() / DRAWS)
    assert np.abs(found.cumsum() - other.cumsum()).max() < 4 / math.sqrt(DRAWS)


def test_a_larger_mean_draws_less_noise():
    low, high = (np.array(timestep_density.logit_normal(1000, mean, 1.0)) for mean in (-1.0, 1.0))
    assert high @ np.arange(1000) < 400 < 600 < low @ np.arange(1000)
    assert np.allclose(low, high[::-1], rtol=1e-12)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (3.0, 0.2), (-10.0, 0.01), (10.0, 100.0)])
def test_logit_normal_has_the_values_of_the_error_function(mean, std):
    found = timestep_density.logit_normal(1000, mean, std)[::-1]
    logits = [math.log(k / (1000 - k)) for k in range(1, 1000)]
    bounds = [0, *(math.erfc((mean - logit) / std / math.sqrt(2)) / 2 for logit in logits), 1]
    assert np.allclose(found, np.diff(bounds), rtol=0, atol=1e-14)
    assert math.isclose(sum(found), 1) and min(found) >= 0


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_inverts_the_map(scale):
    found = np.array(timestep_density.mode(1000, scale))
    u = 1 - np.concatenate([[0], found.cumsum()])
    assert np.allclose(1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u), np.arange(1001) / 1000, rtol=0, atol=1e-13)
    assert found.min() >= 0 and np.allclose(found, found[::-1], rtol=0, atol=1e-12)
    assert np.allclose(found, 1e-3) == (scale == 0)


def test_the_bits_are_these():
    """A change of them would be another training."""
    assert timestep_density.logit_normal(4, 0.0, 1.0) == LOGIT_NORMAL
    assert timestep_density.mode(4, 1.29) == MODE


LOGIT_NORMAL = (0.13596860764142446, 0.36403139235857557, 0.36403139235857557, 0.13596860764142446)
MODE = (0.13362675083888959, 0.3663732491611103, 0.36637324916111036, 0.13362675083888975)
