"""Stable Diffusion's physics on a tiny real pipeline, against Diffusers' own functions."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from engine.data.media.geometry import geometry
from engine.models.families.sd import model
from engine.models.family import Batch, LoadArgs
from engine.models.objectives.diffusion.noise_schedule import NoiseSchedule
from engine.models.objectives.objective import Huber, LossOptions
from tests.support import tiny

CPU = torch.device("cpu")
VARIANTS = {"text_encoder": None, "vae": None, "unet": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


def args_for(folder, dtype=torch.float32, prediction_type="epsilon", variants=VARIANTS):
    return LoadArgs(
        folder=folder, variants=variants, dtype=dtype, device=CPU, prediction_type=prediction_type, caption_tokens=75
    )


@pytest.fixture(scope="module")
def full(folder):
    return model.load(args_for(folder))


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestEncoding:
    def test_embeddings_are_those_of_the_pipeline(self, full):
        with torch.no_grad():
            expected, _ = full.pipeline.encode_prompt("the cat", CPU, 1, False)
        assert torch.equal(full.encode_caption("the cat")["encoder_hidden_states"], expected[0])


def make_batch(size=3):
    draw = torch.Generator().manual_seed(0)
    return Batch(
        latents=torch.randn(size, 4, 8, 8, generator=draw),
        noise=torch.randn(size, 4, 8, 8, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={"encoder_hidden_states": torch.randn(size, 77, tiny.HIDDEN, generator=draw)},
    )


class TestLoss:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize("snr_gamma", [None, 5.0])
    def test_is_diffusers_own_computation(self, folder, prediction_type, snr_gamma):
        family, batch = model.load(args_for(folder, prediction_type=prediction_type)), make_batch()
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        states = batch.conditioning["encoder_hidden_states"]
        prediction = family.denoiser(noisy, batch.timesteps, encoder_hidden_states=states).sample
        target = batch.noise
        if prediction_type == "v_prediction":
            target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        expected = torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
        if snr_gamma is not None:
            alphas = scheduler.alphas_cumprod[batch.timesteps]
            snr = alphas / (1 - alphas)
            weights = torch.stack([snr, torch.full_like(snr, snr_gamma)]).min(dim=0).values
            expected = expected * weights / (snr if prediction_type == "epsilon" else snr + 1)
        found = family.loss(batch, LossOptions(snr_gamma=snr_gamma))
        assert found.dtype == torch.float32 and found.shape == ()
        torch.testing.assert_close(found, expected.mean(), rtol=1e-5, atol=1e-6)

    def test_the_place_of_the_image_is_no_condition(self, full):
        assert full.place(geometry((64, 64), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)) == {}

    def test_huber_mask_and_zero_terminal_snr_reach_the_loss(self, folder):
        args = dataclasses.replace(args_for(folder, prediction_type="v_prediction"), zero_terminal_snr=True)
        family, batch = model.load(args), make_batch()
        schedule = NoiseSchedule.from_config(family.scheduler.config, zero_terminal_snr=True)
        mask = torch.zeros(1, 1, *batch.latents.shape[2:])
        mask[..., :3] = 1
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = family.denoiser(noisy, batch.timesteps, **batch.conditioning).sample
        target = schedule.target("v_prediction", batch.latents, batch.noise, batch.timesteps)
        huber = Huber("huber", "snr", 0.2)
        expected = (schedule.errors(batch.timesteps, huber)(prediction - target) * mask).mean()
        found = family.loss(dataclasses.replace(batch, mask=mask), LossOptions(huber=huber))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_the_schedule_is_the_models(self, tmp_path, folder):
        copy = copy_of(folder, tmp_path)
        edit(copy / "scheduler" / "scheduler_config.json", beta_end=0.02, num_train_timesteps=600)
        family = model.load(args_for(copy))
        expected = DDPMScheduler.from_pretrained(copy, subfolder="scheduler").alphas_cumprod
        assert torch.equal(family.objective.schedule.alphas_cumprod, expected)


class TestLoading:
    def test_the_pipeline_consists_of_the_loaded_parts(self, full):
        pipeline = full.pipeline
        assert isinstance(pipeline, StableDiffusionPipeline)
        assert pipeline.unet is full.denoiser and pipeline.vae is full.vae
        assert pipeline.text_encoder is full.text_encoder and pipeline.safety_checker is None

    def test_a_text_encoder_that_is_trained_stays_on_the_device(self, folder):
        family = model.load(args_for(folder))
        frozen, trained = torch.device("meta"), torch.nn.Parameter(torch.zeros(1))
        assert family.text_encoders == {"text_encoder": family.text_encoder}
        family.text_encoder.register_parameter("lora", trained)
        family.move_encoders(frozen)
        assert family.vae.device == frozen and {p.device for p in family.text_encoder.parameters()} == {CPU}
        trained.requires_grad_(False)
        family.move_encoders(frozen)
        assert {p.device for p in family.text_encoder.parameters()} == {frozen}

    def test_names_in_the_web_interfaces_format(self, full):
        assert full.webui_name("unet", "down_blocks.0.attn1.to_out.0") == "lora_unet_down_blocks_0_attn1_to_out_0"
        module = "text_model.encoder.layers.0.self_attn.q_proj"
        assert full.webui_name("text_encoder", module) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
