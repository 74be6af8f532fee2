"""Stable Diffusion XL's physics on a tiny real pipeline, against Diffusers' own functions."""

import io
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from engine.data.media.geometry import geometry
from engine.data.media.image import render
from engine.models.families.sdxl import model
from engine.models.family import Batch, LoadArgs
from engine.models.objectives.objective import LossOptions
from engine.task.task import Lora
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.formats.files import diffusers_state, webui_state
from tests.support import tiny

CPU = torch.device("cpu")
VARIANTS = dict.fromkeys(("text_encoder", "text_encoder_2", "vae", "unet"))
CAPTIONS = ["", "the cat", "a cat" * 100, "ünïcödé 猫 🐈"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_sdxl(tmp_path_factory.mktemp("model"))


def load(folder, dtype=torch.float32, prediction_type="epsilon"):
    return model.load(
        LoadArgs(
            folder=folder,
            variants=VARIANTS,
            dtype=dtype,
            device=CPU,
            prediction_type=prediction_type,
            caption_tokens=75,
        )
    )


@pytest.fixture(scope="module")
def family(folder):
    return load(folder)


def edited(folder, tmp_path, name, **changes):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | changes))
    return copy


class TestCaptions:
    @pytest.mark.parametrize("caption", CAPTIONS)
    def test_embeddings_are_those_of_the_pipeline(self, family, caption):
        """An empty caption's too: zeros are for the negative prompt alone."""
        with torch.no_grad():
            states, _, pooled, _ = family.pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        found = family.encode_caption(caption)
        assert found.keys() == {"encoder_hidden_states", "text_embeds"}
        assert torch.equal(found["encoder_hidden_states"], states[0])
        assert torch.equal(found["text_embeds"], pooled[0])
        assert found["encoder_hidden_states"].shape == (77, tiny.HIDDEN + tiny.XL_SECOND_HIDDEN)
        assert found["text_embeds"].shape == (tiny.XL_POOLED,) and found["text_embeds"].any()

    def test_each_encoder_has_its_own_tokens(self, family):
        tokens = family.tokenize("the cat")
        assert tokens.keys() == family.text_encoders.keys()
        assert all(ids.shape == (77,) and ids.dtype == torch.int64 for ids in tokens.values())
        assert not torch.equal(tokens["text_encoder"], tokens["text_encoder_2"]), "they pad differently"

    def test_a_batch_of_tokens_is_embedded_with_gradients(self, family):
        rows = [family.tokenize(caption) for caption in CAPTIONS]
        tokens = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        for name, encoder in family.text_encoders.items():
            weight = next(p for n, p in encoder.named_parameters() if n.endswith("layers.0.self_attn.q_proj.weight"))
            weight.requires_grad_(True)
            found = family.embed(tokens)
            (gradient,) = torch.autograd.grad(found["encoder_hidden_states"].square().sum(), [weight])
            weight.requires_grad_(False)
            assert gradient.any(), name


class TestPlace:
    def picture(self, size):
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("center_crop", [False, True])
    @pytest.mark.parametrize("size", [(96, 64), (64, 160), (64, 64), (40, 30)])
    @pytest.mark.parametrize("shape", [(64, 64), (128, 64), (64, 96)])
    def test_it_is_the_corner_of_the_shown_crop(self, family, size, shape, center_crop, flip):
        """Cut out of the resized (and mirrored) image at that corner, the crop has the pixels that are trained on."""
        view = geometry(size, target=shape, center_crop=center_crop, crop_words=(3 << 62, 1 << 62), flip=flip)
        height, width, top, left, *target = family.place(view)["time_ids"].long().tolist()
        assert (width, height) == size and target == [shape[1], shape[0]]
        picture = self.picture(size)
        whole = picture.resize(view.resized, Image.Resampling.BILINEAR)
        if flip:
            whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = np.asarray(whole.crop((left, top, left + shape[0], top + shape[1])))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        assert np.array_equal(render(buffer.getvalue(), view), expected)

    def test_it_is_exact_in_every_precision(self, folder):
        """bfloat16 would make 1000 of 1001."""
        view = geometry((1001, 1003), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
        ids = load(folder, torch.bfloat16).place(view)["time_ids"]
        assert ids.dtype == torch.float32 and ids.tolist() == [1003, 1001, 0, 0, 64, 64]


def make_batch(family, size=3):
    draw = torch.Generator().manual_seed(0)
    rows = [family.encode_caption(f"caption {k}") for k in range(size)]
    return Batch(
        latents=torch.randn(size, 4, 8, 8, generator=draw),
        noise=torch.randn(size, 4, 8, 8, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        | {"time_ids": torch.tensor([[100.0 + k, 80.0, k, 0.0, 64.0, 64.0] for k in range(size)])},
    )


class TestLoss:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_is_diffusers_own_computation(self, folder, prediction_type):
        family = load(folder, prediction_type=prediction_type)
        batch = make_batch(family)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        added = {name: batch.conditioning[name] for name in ("text_embeds", "time_ids")}
        prediction = family.denoiser(
            noisy,
            batch.timesteps,
            encoder_hidden_states=batch.conditioning["encoder_hidden_states"],
            added_cond_kwargs=added,
        ).sample
        target = batch.noise
        if prediction_type == "v_prediction":
            target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        expected = torch.nn.functional.mse_loss(prediction, target)
        torch.testing.assert_close(family.loss(batch, LossOptions()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
class TestPrecision:
    def test_the_vae_keeps_full_precision_where_it_asks_for_it(self, folder, family, dtype):
        half = load(folder, dtype)
        assert half.vae.dtype == torch.float32 and half.denoiser.dtype == dtype
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for name, tensor in family.encode_pixels(pixels).items():
            assert torch.equal(half.encode_pixels(pixels)[name], tensor)

    def test_a_vae_that_is_safe_in_half_precision_is_in_the_tasks(self, folder, tmp_path, dtype):
        half = load(edited(folder, tmp_path, "vae/config.json", force_upcast=False), dtype)
        assert half.vae.dtype == dtype
        assert half.encode_pixels(np.zeros((64, 64, 3), np.uint8))["mean"].dtype == dtype

    @pytest.mark.parametrize("force_upcast", [True, False])
    def test_the_pipeline_draws_in_half_precision(self, folder, family, tmp_path, dtype, force_upcast, recwarn):
        half = load(edited(folder, tmp_path, "vae/config.json", force_upcast=force_upcast), dtype)
        images = [draw(one.pipeline) for one in (half, family)]
        assert np.abs(images[0] - images[1]).mean() < 4 and images[0].std() > 1
        assert half.vae.dtype == (torch.float32 if force_upcast else dtype)
        assert not [warning for warning in recwarn if "upcast" in str(warning.message)]

    def test_the_loss_is_near_and_float32(self, folder, family, dtype):
        half = load(folder, dtype).loss(make_batch(family), LossOptions())
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, family.loss(make_batch(family), LossOptions()), rtol=0.05, atol=0.01)


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    picture = pipeline("a cat", num_inference_steps=3, height=64, width=64, generator=generator).images[0]
    return np.asarray(picture).astype(int)


class TestPipeline:
    def test_it_draws_what_diffusers_alone_draws(self, folder, family):
        assert np.array_equal(draw(family.pipeline), draw(plain_pipeline(folder)))

    @pytest.mark.parametrize("says", [True, False, None])
    def test_what_the_model_says_of_missing_negative_prompts_holds(self, folder, tmp_path, says):
        found = edited(folder, tmp_path, "model_index.json", force_zeros_for_empty_prompt=says)
        if says is None:
            (found / "model_index.json").unlink()
        pipeline = load(found).pipeline
        assert pipeline.config.force_zeros_for_empty_prompt == (says is not False)
        _, negative, _, pooled = pipeline.encode_prompt("a cat")
        assert bool(negative.any()) == bool(pooled.any()) == (says is False)


def plain_pipeline(folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return pipeline


class Listener(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def complaints():
    listener, loggers = Listener(), [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    for logger in loggers:
        logger.addHandler(listener)
    yield listener.messages
    for logger in loggers:
        logger.removeHandler(listener)


@pytest.fixture(scope="module")
def adapter(folder):
    """A trained adapter of every layer."""
    unet = load(folder).denoiser
    every = [n for n, part in unet.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    found = attach({"unet": unet}, Lora(rank=2, target_modules=tuple(every)), 0, spec=model.SPEC)
    draws = torch.Generator().manual_seed(1)
    for parameter in found.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=draws) * 0.1
    return found


class TestFiles:
    """Every layer of the UNet through Diffusers' loader, module by module."""

    @pytest.mark.parametrize("kind", ["diffusers", "webui"])
    def test_diffusers_loads_it_whole(self, folder, family, adapter, kind, tmp_path, complaints):
        if kind == "diffusers":
            tensors = diffusers_state(adapter)
        else:
            tensors = webui_state(adapter, family.webui_name)
            assert all(name.startswith("lora_unet_") for name in tensors)
        save_file(tensors, tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        said = [message for message in complaints if not message.startswith("No LoRA keys associated to CLIPTextModel")]
        assert said == []
        loaded = get_peft_model_state_dict(pipeline.unet, adapter_name="default_0")
        expected = {name.removeprefix("unet."): tensor for name, tensor in adapter.state().items()}
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(loaded[name], tensor), name

    def test_text_encoders_have_names_of_their_own(self, family):
        module = "text_model.encoder.layers.0.self_attn.q_proj"
        names = [family.webui_name(component, module) for component in ("text_encoder", "text_encoder_2")]
        assert names == [f"lora_te{k}_text_model_encoder_layers_0_self_attn_q_proj" for k in (1, 2)]

    def test_diffusers_finds_the_text_encoders_layers_by_them(self, folder, family, tmp_path, complaints):
        tensors, expected = {}, {}
        for component, encoder in family.text_encoders.items():
            for number, (module, layer) in enumerate(encoder.named_modules()):
                if module.endswith(("q_proj", "k_proj", "v_proj", "out_proj")):
                    down = torch.full((2, layer.in_features), float(number))
                    up = torch.full((layer.out_features, 2), -float(number))
                    name = family.webui_name(*family.spec.lora_name(component, module).split(".", 1))
                    tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                    tensors[f"{name}.alpha"] = torch.tensor(2.0)
                    expected |= {f"{component}.{module}.lora_A.weight": down, f"{component}.{module}.lora_B.weight": up}
        save_file(tensors, tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        assert [message for message in complaints if "No LoRA keys associated to UNet" not in message] == []
        loaded = {}
        for component in ("text_encoder", "text_encoder_2"):
            state = get_peft_model_state_dict(getattr(pipeline, component), adapter_name="default_0")
            loaded |= {f"{component}.{name}": tensor for name, tensor in state.items()}
        assert loaded.keys() == expected.keys() and len(expected) == 2 * 4 * (2 + 3)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
