"""The physics against Diffusers' own, and the formulas by hand."""

import math

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.training_utils import compute_snr

from engine.core.errors import ModelError
from engine.models.objectives.diffusion.noise_schedule import NoiseSchedule
from engine.models.objectives.losses import mean_error, offset_noise
from engine.models.objectives.objective import Huber
from tests.support.tolerance import assert_equal_but_for_rounding

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
CONFIGS = {
    "sd": SD,
    "linear": SD | {"beta_schedule": "linear", "num_train_timesteps": 400},
    "cosine": SD | {"beta_schedule": "squaredcos_cap_v2"},
    "zero-snr": SD | {"rescale_betas_zero_snr": True},
    "trained": {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
}


def draws(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


class TestNoiseSchedule:
    def test_alphas_are_diffusers(self, config):
        schedule = NoiseSchedule.from_config(config)
        assert torch.equal(schedule.alphas_cumprod, DDPMScheduler.from_config(config).alphas_cumprod)
        assert schedule.alphas_cumprod.dtype == torch.float32
        assert schedule.num_train_timesteps == config["num_train_timesteps"]

    @pytest.mark.parametrize("scheduler", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler])
    def test_any_schedulers_configuration(self, scheduler):
        theirs = scheduler(**SD, prediction_type="v_prediction")
        assert torch.equal(NoiseSchedule.from_config(theirs.config).alphas_cumprod, theirs.alphas_cumprod)

    @pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
    @pytest.mark.parametrize("changes", [{}, {"snr_shift_scale": 1.0}, {"rescale_betas_zero_snr": True}])
    def test_shifted_alphas_are_diffusers(self, scheduler, changes):
        theirs = scheduler.from_config(SD | changes)
        found = NoiseSchedule.from_config({"_class_name": scheduler.__name__, **theirs.config}).alphas_cumprod
        assert torch.equal(found, theirs.alphas_cumprod.to(torch.float32))
        assert bool(found[-1] == 0) == bool(changes.get("rescale_betas_zero_snr"))

    def test_a_shift_divides_the_signal_to_noise_ratio(self):
        config, timesteps = SD | {"snr_shift_scale": 3.0}, torch.tensor([1, 500, 999])
        plain = NoiseSchedule.from_config(config).snr(timesteps)
        shifted = NoiseSchedule.from_config(config | {"_class_name": "CogVideoXDDIMScheduler"}).snr(timesteps)
        torch.testing.assert_close(shifted, plain / 3, rtol=1e-3, atol=0)

    def test_an_unknown_beta_schedule_is_the_models_fault(self):
        with pytest.raises(ModelError, match=r"'sigmoid'.*scaled_linear"):
            NoiseSchedule.from_config(SD | {"beta_schedule": "sigmoid"})

    def test_a_malformed_configuration_is_the_models_fault(self):
        with pytest.raises(ModelError, match="malformed"):
            NoiseSchedule.from_config(SD | {"num_train_timesteps": "many"})

    @pytest.mark.parametrize("shape", [(4, 4, 8, 8), (4, 16), (4, 3, 2, 4, 4), (4,)])
    def test_noising_is_diffusers(self, config, shape):
        theirs, ours = DDPMScheduler.from_config(config), NoiseSchedule.from_config(config)
        last = ours.num_train_timesteps - 1
        timesteps = torch.tensor([0, 1, last // 2, last])
        latents, noise = draws(*shape, seed=1), draws(*shape, seed=2)
        assert torch.equal(ours.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps))
        velocity = ours.target("v_prediction", latents, noise, timesteps)
        assert torch.equal(velocity, theirs.get_velocity(latents, noise, timesteps))
        assert torch.equal(ours.target("epsilon", latents, noise, timesteps), noise)

    def test_half_precision_is_only_rounded_at_the_end(self):
        schedule, timesteps = NoiseSchedule.from_config(SD), torch.tensor([3, 700])
        latents, noise = draws(2, 4, 8, 8, dtype=torch.float16), draws(2, 4, 8, 8, seed=1, dtype=torch.float16)
        noisy = schedule.add_noise(latents, noise, timesteps)
        assert noisy.dtype == torch.float16
        assert torch.equal(noisy, schedule.add_noise(latents.float(), noise.float(), timesteps).half())

    def test_noise_and_velocity_give_back_the_sample(self):
        schedule, timesteps = NoiseSchedule.from_config(SD), torch.tensor([10, 900])
        latents, noise = draws(2, 4, 8, 8, seed=1), draws(2, 4, 8, 8, seed=2)
        noisy = schedule.add_noise(latents, noise, timesteps)
        velocity = schedule.target("v_prediction", latents, noise, timesteps)
        alpha = schedule.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        torch.testing.assert_close(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents)

    def test_moves(self):
        assert NoiseSchedule.from_config(SD).to(torch.device("meta")).alphas_cumprod.device.type == "meta"


class TestMinSnr:
    def test_snr_is_diffusers(self, config):
        theirs, ours = DDPMScheduler.from_config(config), NoiseSchedule.from_config(config)
        timesteps = torch.arange(ours.num_train_timesteps)
        torch.testing.assert_close(ours.snr(timesteps), compute_snr(theirs, timesteps), rtol=1e-4, atol=1e-9)

    def test_by_hand(self):
        # ᾱ = 0.9, 0.72, 0.504, 0.3024 -> SNR = 9, 2.571…, 1.016…, 0.4335…
        schedule, timesteps = NoiseSchedule.from_config(CONFIGS["trained"]), torch.arange(4)
        ratios = torch.tensor([9.0, 72 / 28, 504 / 496, 3024 / 6976])
        torch.testing.assert_close(schedule.snr(timesteps), ratios)
        torch.testing.assert_close(
            schedule.min_snr_weights(timesteps, 2.0, "epsilon"), torch.tensor([2 / 9, 2 * 28 / 72, 1.0, 1.0])
        )
        torch.testing.assert_close(
            schedule.min_snr_weights(timesteps, 2.0, "v_prediction"),
            torch.tensor([2 / 10, 2 / (72 / 28 + 1), 504 / 1000, 3024 / 10000]),
        )

    def test_zero_terminal_snr(self):
        schedule = NoiseSchedule.from_config(CONFIGS["zero-snr"])
        timesteps = torch.arange(1000)
        assert schedule.snr(timesteps)[-1] == 0
        for prediction_type, last in (("epsilon", 1.0), ("v_prediction", 0.0)):
            weights = schedule.min_snr_weights(timesteps, 5.0, prediction_type)
            assert torch.isfinite(weights).all()
            assert weights[-1] == last
            assert weights.min() >= 0 and weights.max() <= 1

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_a_gamma_beyond_float32_caps_nothing(self, prediction_type):
        schedule, timesteps = NoiseSchedule.from_config(CONFIGS["trained"]), torch.arange(4)
        weights = [schedule.min_snr_weights(timesteps, gamma, prediction_type) for gamma in (1e308, 1e30)]
        assert torch.equal(*weights)

    def test_noiseless_start_is_finite(self):
        schedule = NoiseSchedule(torch.tensor([1.0, 0.5]))
        for prediction_type in ("epsilon", "v_prediction"):
            assert schedule.min_snr_weights(torch.arange(2), 5.0, prediction_type)[0] == 0


class TestLoss:
    @pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 5), (3, 2, 3, 4, 4), (3,)])
    def test_is_the_mean_squared_error(self, shape):
        prediction, target = draws(*shape, seed=1), draws(*shape, seed=2)
        torch.testing.assert_close(mean_error(prediction, target), torch.nn.functional.mse_loss(prediction, target))

    def test_weights_each_sample(self):
        prediction, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        # Sample errors 5 and 10: (5 * 0.5 + 10 * 0.1) / 2.
        assert mean_error(prediction, target, torch.tensor([0.5, 0.1])).item() == pytest.approx(1.75)

    def test_is_float32_whatever_comes_in(self):
        prediction, target = torch.full((2, 100), 300.0, dtype=torch.float16), torch.zeros(2, 100, dtype=torch.bfloat16)
        value = mean_error(prediction, target)  # 300² overflows float16
        assert value.dtype == torch.float32 and value.ndim == 0 and value.item() == 90000

    def test_never_broadcasts(self):
        with pytest.raises(AssertionError):
            mean_error(torch.zeros(2, 4), torch.zeros(2, 1))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8), (2, 4)])
def test_offset_noise_shifts_whole_channels(shape):
    noise, offsets = draws(*shape, seed=1), draws(2, 4, seed=2)
    expected = 0.1 * offsets.reshape(2, 4, *[1] * (len(shape) - 2)).expand(shape)
    assert_equal_but_for_rounding(offset_noise(noise, 0.1, offsets), noise + expected, operations=2)
    assert torch.equal(offset_noise(noise, 0.0, offsets), noise)


class TestHuber:
    """The formulas by hand, on ᾱ = 0.9, 0.72, 0.504, 0.3024."""

    schedule = NoiseSchedule.from_config(CONFIGS["trained"])

    def thresholds(self, name, c=0.1):
        return self.schedule.huber_thresholds(torch.arange(4), Huber("huber", name, c)).tolist()

    def test_thresholds(self):
        assert self.thresholds("constant", 0.3) == pytest.approx([0.3] * 4)
        assert self.thresholds("exponential") == pytest.approx([1.0, 0.1**0.25, 0.1**0.5, 0.1**0.75])
        sigmas = [math.sqrt((1 - a) / a) for a in (0.9, 0.72, 0.504, 0.3024)]
        assert self.thresholds("snr") == pytest.approx([0.9 / (1 + sigma) ** 2 + 0.1 for sigma in sigmas])

    def test_zero_snr_has_the_smallest_threshold(self):
        schedule = NoiseSchedule.from_config(CONFIGS["zero-snr"])
        last = torch.tensor([999])
        assert schedule.huber_thresholds(last, Huber("huber", "snr", 0.1)).item() == pytest.approx(0.1)

    @pytest.mark.parametrize("name", ["constant", "exponential", "snr"])
    def test_the_losses(self, name):
        timesteps = torch.arange(4)
        prediction, target = draws(4, 3, 5, 5, seed=1) * 3, draws(4, 3, 5, 5, seed=2)
        c = self.schedule.huber_thresholds(timesteps, Huber("huber", name, 0.1)).reshape(4, 1, 1, 1).double()
        d = (prediction - target).double()
        root = (d**2 + c**2).sqrt() - c
        for kind, expected in (("huber", 2 * c * root), ("smooth_l1", 2 * root)):
            errors = self.schedule.errors(timesteps, Huber(kind, name, 0.1))
            found = mean_error(prediction, target, errors=errors)
            assert found.dtype == torch.float32
            assert found.item() == pytest.approx(expected.mean().item(), rel=1e-5)
            weighted = mean_error(prediction, target, torch.tensor([1.0, 0.0, 0.0, 0.0]), errors=errors)
            assert weighted.item() == pytest.approx(expected[0].mean().item() / 4, rel=1e-5)

    def test_the_limits(self):
        timesteps = torch.zeros(1, dtype=torch.int64)
        small, large = torch.tensor([[0.01]]), torch.tensor([[1000.0]])
        for kind, near_zero, far in (("huber", 0.01**2, 2 * 1000.0), ("smooth_l1", 0.01**2, 2 * 1000.0)):
            errors = self.schedule.errors(timesteps, Huber(kind, "exponential", 0.1))  # c = 1 at t = 0
            assert errors(small).item() == pytest.approx(near_zero, rel=1e-2)
            assert errors(large).item() == pytest.approx(far, rel=2e-3)

    def test_none_is_the_squared_error_to_the_bit(self):
        prediction, target = draws(2, 4, 8, 8, seed=1), draws(2, 4, 8, 8, seed=2)
        errors = self.schedule.errors(torch.tensor([0, 3]), None)
        assert torch.equal(mean_error(prediction, target, errors=errors), mean_error(prediction, target))


class TestMask:
    def test_weights_places(self):
        prediction, target = draws(2, 4, 8, 8, seed=1), draws(2, 4, 8, 8, seed=2)
        mask = (draws(2, 1, 8, 8, seed=3) > 0).float()
        expected = ((prediction - target) ** 2 * mask).mean()
        torch.testing.assert_close(mean_error(prediction, target, mask=mask), expected)
        assert torch.equal(mean_error(prediction, target, mask=torch.ones(2, 1, 8, 8)), mean_error(prediction, target))

    def test_what_is_masked_out_gives_no_gradient(self):
        prediction, mask = draws(1, 2, 4, 4, seed=1).requires_grad_(), torch.zeros(1, 1, 4, 4)
        mask[..., :2] = 1
        mean_error(prediction, draws(1, 2, 4, 4, seed=2), mask=mask).backward()
        assert (prediction.grad[..., 2:] == 0).all() and (prediction.grad[..., :2] != 0).all()


def test_zero_terminal_snr_is_lins_algorithm():
    """Lin et al. 2023, algorithm 1: shift √ᾱ so that its last is 0, scale so that its first stays."""
    plain, found = NoiseSchedule.from_config(SD), NoiseSchedule.from_config(SD, zero_terminal_snr=True)
    root = plain.alphas_cumprod.double().sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    torch.testing.assert_close(found.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-7)
    assert found.alphas_cumprod[-1] == 0 and found.snr(torch.tensor([999])).item() == 0
