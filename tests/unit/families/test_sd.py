"""Stable Diffusion's physics on a tiny real pipeline, against Diffusers' own functions."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engine import families
from engine.families import sd
from engine.families.base import Batch, LoadArgs
from engine.objectives import NoiseSchedule
from tests import tiny

CPU = torch.device("cpu")
VARIANTS = {"text_encoder": None, "vae": None, "unet": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sd(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def args_for(folder, dtype=torch.float32, prediction_type="epsilon", variants=VARIANTS):
    return LoadArgs(folder=folder, variants=variants, dtype=dtype, device=CPU, prediction_type=prediction_type)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def family(request, folder):
    return sd.load(args_for(folder, request.param))


@pytest.fixture(scope="module")
def full(folder):
    return sd.load(args_for(folder))


def picture(k, side=64):
    return np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)


def raw(tensors):
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestEncoding:
    def test_an_images_bits_do_not_depend_on_what_else_is_encoded(self, family):
        first = [raw(family.encode_image(picture(k))) for k in range(4)]
        family.encode_image(picture(9, 128))
        assert [raw(family.encode_image(picture(k))) for k in (3, 2, 1, 0)] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_a_captions_bits_do_not_depend_on_what_else_is_encoded(self, family):
        captions = ["", "a cat", "a cat" * 100, "ünïcödé 猫 🐈"]
        first = [raw(family.encode_caption(caption)) for caption in captions]
        assert [raw(family.encode_caption(caption)) for caption in captions[::-1]] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_moments_are_the_vaes(self, full):
        pixels = picture(0)
        image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = full.vae.encode(image).latent_dist
        found = full.encode_image(pixels)
        torch.testing.assert_close(found["mean"], posterior.mean[0])
        torch.testing.assert_close(found["logvar"], posterior.logvar[0])
        assert found["mean"].shape == full.latent_shape(64) == (4, 8, 8)

    def test_embeddings_are_those_of_the_pipeline(self, full):
        with torch.no_grad():
            expected, _ = full.pipeline().encode_prompt("the cat", CPU, 1, False)
        assert torch.equal(full.encode_caption("the cat")["encoder_hidden_states"], expected[0])

    def test_encodings_keep_no_graph_and_no_shared_memory(self, family):
        for tensors in (family.encode_image(picture(0)), family.encode_caption("a cat")):
            for tensor in tensors.values():
                assert not tensor.requires_grad and tensor.device == CPU

    def test_latents_are_drawn_from_the_posterior_and_scaled(self, full):
        moments = {"mean": torch.full((4, 2, 2), 3.0), "logvar": torch.full((4, 2, 2), 2 * np.log(5.0))}
        noise = torch.linspace(-1, 1, 16).reshape(4, 2, 2)
        latents = full.sample_latents(moments, noise)
        assert latents.dtype == torch.float32
        torch.testing.assert_close(latents, (3 + 5 * noise) * full.vae.config.scaling_factor)


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
        family, batch = sd.load(args_for(folder, prediction_type=prediction_type)), make_batch()
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
        found = family.loss(batch, snr_gamma=snr_gamma)
        assert found.dtype == torch.float32 and found.shape == ()
        torch.testing.assert_close(found, expected.mean(), rtol=1e-5, atol=1e-6)

    def test_half_precision_is_near_and_float32(self, folder, full):
        half = sd.load(args_for(folder, torch.bfloat16)).loss(make_batch(), snr_gamma=None)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full.loss(make_batch(), snr_gamma=None), rtol=0.05, atol=0.01)

    def test_the_schedule_is_the_models(self, tmp_path, folder):
        copy = copy_of(folder, tmp_path)
        edit(copy / "scheduler" / "scheduler_config.json", beta_end=0.02, num_train_timesteps=600)
        family = sd.load(args_for(copy))
        expected = DDPMScheduler.from_pretrained(copy, subfolder="scheduler").alphas_cumprod
        assert isinstance(family.schedule, NoiseSchedule) and torch.equal(family.schedule.alphas_cumprod, expected)


class TestLoading:
    def test_all_parts_are_frozen_in_the_dtype_asked_for_and_not_training(self, family):
        for module in (family.denoiser, family.vae, family.text_encoder):
            assert {parameter.dtype for parameter in module.parameters()} == {family._args.dtype}
            assert not any(parameter.requires_grad for parameter in module.parameters()) and not module.training

    def test_weights_are_the_files(self, full, folder):
        for part, module, file in (
            ("unet", full.denoiser, "diffusion_pytorch_model.safetensors"),
            ("vae", full.vae, "diffusion_pytorch_model.safetensors"),
        ):
            tensors, state = load_file(folder / part / file), module.state_dict()
            assert tensors.keys() == state.keys()
            assert all(torch.equal(tensors[name], state[name]) for name in tensors)

    def test_memory_is_owned_not_the_files(self, tmp_path, folder):
        copy = copy_of(folder, tmp_path)
        family = sd.load(args_for(copy))
        modules = (family.denoiser, family.vae, family.text_encoder)
        before = [tensor.clone() for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for path in copy.rglob("*.safetensors"):
            with path.open("r+b") as file:  # in place: a memory map would show it
                file.write(b"\xff" * path.stat().st_size)
        after = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert all(tensor.data_ptr() % 64 == 0 for tensor in after if tensor.numel())

    @pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
    def test_the_alignment_of_a_file_changes_no_bit(self, tmp_path, folder, full, part):
        copy = copy_of(folder, tmp_path)
        (path,) = (copy / part).glob("*.safetensors")
        save_file(load_file(path), path, metadata={"format": "pt", "x": "y" * 13})
        other = sd.load(args_for(copy))
        assert raw(other.encode_image(picture(0))) == raw(full.encode_image(picture(0)))
        assert raw(other.encode_caption("a cat")) == raw(full.encode_caption("a cat"))
        batch = make_batch(1)
        assert torch.equal(other.loss(batch, snr_gamma=None), full.loss(batch, snr_gamma=None))

    def test_a_half_precision_model_is_loaded_in_full_precision(self, tmp_path):
        """Its text encoder's configuration says float16."""
        folder = tiny.build_sd(tmp_path / "model", variant="fp16", only_variant=True)
        assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
        family = sd.load(args_for(folder, variants=dict.fromkeys(VARIANTS, "fp16")))
        for module in (family.denoiser, family.vae, family.text_encoder):
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}

    def test_the_pipeline_consists_of_the_loaded_parts(self, full):
        pipeline = full.pipeline()
        assert isinstance(pipeline, StableDiffusionPipeline)
        assert pipeline.unet is full.denoiser and pipeline.vae is full.vae
        assert pipeline.text_encoder is full.text_encoder and pipeline.safety_checker is None

    def test_the_scheduler_predicts_what_the_training_predicts(self, folder):
        assert sd.load(args_for(folder, prediction_type="v_prediction")).scheduler.config.prediction_type == (
            "v_prediction"
        )

    def test_names_in_the_web_interfaces_format(self, full):
        assert full.webui_name("unet", "down_blocks.0.attn1.to_out.0") == "lora_unet_down_blocks_0_attn1_to_out_0"
        module = "text_model.encoder.layers.0.self_attn.q_proj"
        assert full.webui_name("text_encoder", module) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"

    def test_the_registrys_row_loads_this_family(self, folder):
        entry = families.detect(json.loads((folder / "model_index.json").read_text()))
        assert isinstance(families.load(entry, args_for(folder)), sd.StableDiffusion)
