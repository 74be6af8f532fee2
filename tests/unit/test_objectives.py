"""The physics against Diffusers' own, and the formulas by hand."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr

from engine.errors import ModelError
from engine.objectives import NoiseSchedule, loss, offset_noise

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

    def test_noiseless_start_is_finite(self):
        schedule = NoiseSchedule(torch.tensor([1.0, 0.5]))
        for prediction_type in ("epsilon", "v_prediction"):
            assert schedule.min_snr_weights(torch.arange(2), 5.0, prediction_type)[0] == 0


class TestLoss:
    @pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 5), (3, 2, 3, 4, 4), (3,)])
    def test_is_the_mean_squared_error(self, shape):
        prediction, target = draws(*shape, seed=1), draws(*shape, seed=2)
        torch.testing.assert_close(loss(prediction, target), torch.nn.functional.mse_loss(prediction, target))

    def test_weights_each_sample(self):
        prediction, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        # Sample errors 5 and 10: (5 * 0.5 + 10 * 0.1) / 2.
        assert loss(prediction, target, torch.tensor([0.5, 0.1])).item() == pytest.approx(1.75)

    def test_is_float32_whatever_comes_in(self):
        prediction, target = torch.full((2, 100), 300.0, dtype=torch.float16), torch.zeros(2, 100, dtype=torch.bfloat16)
        value = loss(prediction, target)  # 300² overflows float16
        assert value.dtype == torch.float32 and value.ndim == 0 and value.item() == 90000

    def test_never_broadcasts(self):
        with pytest.raises(AssertionError):
            loss(torch.zeros(2, 4), torch.zeros(2, 1))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8), (2, 4)])
def test_offset_noise_shifts_whole_channels(shape):
    noise, offsets = draws(*shape, seed=1), draws(2, 4, seed=2)
    shift = offset_noise(noise, 0.1, offsets) - noise
    expected = 0.1 * offsets.reshape(2, 4, *[1] * (len(shape) - 2)).expand(shape)
    torch.testing.assert_close(shift, expected, atol=1e-6, rtol=0)
    assert torch.equal(offset_noise(noise, 0.0, offsets), noise)
