"""Flow matching against Diffusers' scheduler: noise levels, noising, and the direction in which it draws."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from engine.models.family import Batch
from engine.models.objectives.flow.objective import Flow
from engine.models.objectives.flow.shift import Shift
from engine.models.objectives.losses import training_loss
from engine.models.objectives.objective import Huber, LossOptions

ALL = torch.arange(1000)
CPU = torch.device("cpu")


def flow(config=None, wanted=None, **changes):
    return replace(Flow(1000, Shift.of(config or {}, wanted), CPU), **changes)


def samples(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_noise_levels_are_the_schedulers_bit_for_bit(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    found = flow({"shift": shift}).sigmas(torch.zeros(1000, 1, 2, 2), ALL)
    assert found.dtype == torch.float32 and torch.equal(found, scheduler.sigmas.flip(0))


@pytest.mark.parametrize("height, width", [(64, 64), (128, 128), (96, 160)])
def test_noise_levels_follow_from_the_size_as_in_the_pipeline(height, width):
    """Of latents: packed two by two into tokens, as Flux has it, and one by one."""
    config = {"use_dynamic_shifting": True}
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    for patch in (2, 1):
        tokens = height * width // patch**2
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        expected = scheduler.time_shift(mu, 1.0, scheduler.sigmas.flip(0))
        found = flow(config, patch=patch).sigmas(torch.zeros(1000, 1, 1, 1).expand(1000, 1, height, width), ALL)
        torch.testing.assert_close(found, expected)
    clip, picture = (
        torch.zeros(1).expand(1000, 1, *shape) for shape in ((4, height // 2, width // 2), (height, width))
    )
    assert torch.equal(flow(config).sigmas(clip, ALL), flow(config).sigmas(picture, ALL))


def test_noising_is_the_schedulers():
    scheduler, objective = FlowMatchEulerDiscreteScheduler(shift=3.0), flow({"shift": 3.0})
    (latents, noise), timesteps = samples(4, 3, 8, 8), torch.tensor([0, 250, 700, 999])
    expected = scheduler.scale_noise(latents, scheduler.timesteps.flip(0)[timesteps], noise)
    assert torch.equal(objective.add_noise(latents, noise, timesteps), expected)
    assert torch.equal(objective.add_noise(latents, noise, torch.full((4,), 999)), noise)


def test_the_denoiser_is_told_the_exact_noise_level():
    """A rounded one belongs to other latents than those that it sees."""
    objective, (latents, noise) = flow({"shift": 3.0}), samples(2, 3, 8, 8)
    timesteps, told = torch.tensor([10, 600]), []

    def denoise(noisy, time):
        told.append((noisy.dtype, time))
        return torch.zeros_like(noisy)

    batch = Batch(latents=latents, noise=noise, timesteps=timesteps, conditioning={})
    training_loss(objective, denoise, batch, LossOptions(), torch.bfloat16)
    ((dtype, time),) = told
    assert dtype == torch.bfloat16 and time.dtype == torch.float32
    assert torch.equal(time, objective.sigmas(latents, timesteps))


def test_the_schedulers_steps_along_the_target_end_at_the_image():
    objective, scheduler = flow({"shift": 3.0}), FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise = samples(1, 3, 8, 8)
    scheduler.set_timesteps(7)
    found = noise
    for timestep in scheduler.timesteps:
        found = scheduler.step(objective.target(latents, noise, timestep), timestep, found).prev_sample
    torch.testing.assert_close(found, latents)


def test_a_model_that_is_trained_so_draws_what_it_has_seen():
    torch.manual_seed(0)
    objective, image = flow({"shift": 3.0}), torch.tensor([[1.5, -0.5]])
    model = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def denoise(noisy, time):
        return model(torch.cat([noisy, time[:, None]], dim=1))

    losses = []
    for _ in range(400):
        batch = Batch(
            latents=image.expand(256, 2),
            noise=torch.randn(256, 2),
            timesteps=torch.randint(0, 1000, (256,)),
            conditioning={},
        )
        loss = training_loss(objective, denoise, batch, LossOptions(), torch.float32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) < 0.2 * sum(losses[:50])
    scheduler, drawn = FlowMatchEulerDiscreteScheduler(shift=3.0), torch.randn(64, 2)
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
            drawn = scheduler.step(denoise(drawn, sigma.expand(64)), timestep, drawn).prev_sample
    assert (drawn - image).norm(dim=1).mean() < 0.3


class TestHuber:
    @pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
    @pytest.mark.parametrize(
        "schedule, thresholds",
        [
            ("constant", [0.1, 0.1, 0.1]),
            ("exponential", [0.1**0.001, 0.1**0.5, 0.1]),
            ("snr", [0.9 * 0.999**2 + 0.1, 0.9 * 0.25 + 0.1, 0.1]),
        ],
    )
    def test_the_threshold_falls_with_the_noise(self, kind, schedule, thresholds):
        latents, timesteps = torch.zeros(3, 2, 4, 4), torch.tensor([0, 499, 999])
        options = LossOptions(huber=Huber(kind, schedule, 0.1))
        c = torch.tensor(thresholds).reshape(3, 1, 1, 1)
        differences, _ = samples(3, 2, 4, 4)
        root = torch.sqrt(differences**2 + c**2) - c
        found = flow().errors(latents, timesteps, options)(differences)
        torch.testing.assert_close(found, 2 * root if kind == "smooth_l1" else 2 * c * root)

    def test_the_noise_level_is_the_shifted_one(self):
        latents, timesteps = torch.zeros(1, 2, 128, 128), torch.tensor([499])
        options = LossOptions(huber=Huber("smooth_l1", "snr", 0.1))
        one = torch.ones(1, 2, 128, 128)
        plain, shifted = (flow(wanted=shift).errors(latents, timesteps, options)(one) for shift in (1.0, "resolution"))
        assert (plain < shifted).all()  # more noise, a smaller threshold, a loss nearer to twice the absolute error
