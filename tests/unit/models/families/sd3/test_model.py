"""Stable Diffusion 3 on tiny real pipelines, against Diffusers' own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from engine.models.families.sd3 import model
from engine.models.family import Batch, Drawing, LoadArgs
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from engine.task.task import Lora
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.formats.files import diffusers_state, webui_state
from tests.support.tiny_sd3 import T5_WIDTH, VERSIONS, build_sd3

CPU = torch.device("cpu")
LENGTH = 40
CAPTIONS = ["", "the cat", "a cat" * 100, "ünïcödé 猫 🐈"]
WITHOUT_T5 = frozenset(model.SPEC.optional)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models with T5 and without."""
    return {with_t5: build_sd3(tmp_path_factory.mktemp("model"), with_t5=with_t5) for with_t5 in (True, False)}


@pytest.fixture(scope="module")
def folder(folders):
    return folders[True]


def load(folder, dtype=torch.float32, with_t5=True, **options):
    args = LoadArgs(
        folder=folder,
        variants=dict.fromkeys(model.SPEC.weighted),
        absent=frozenset() if with_t5 else WITHOUT_T5,
        dtype=dtype,
        device=CPU,
        caption_tokens=LENGTH,
        prediction_type="flow",
        **options,
    )
    return model.load(args)


@pytest.fixture(scope="module")
def family(folder):
    return load(folder)


def plain_pipeline(folder):
    # Diffusers wants to be told that a model is without T5.
    absent = {} if (folder / "text_encoder_3").exists() else dict.fromkeys(model.SPEC.optional)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    for module in [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()  # aligned otherwise than in a file's memory map
    return pipeline


@torch.no_grad()
def encode(pipeline, caption, length=LENGTH):
    """The pipeline's text states and pooled text of a caption."""
    states, _, pooled, _ = pipeline.encode_prompt(
        caption, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return states, pooled


def make_batch(family, size=3):
    shape, draw = family.latent_shape(Extent(96, 64)), torch.Generator().manual_seed(0)
    rows = [family.encode_caption(f"caption {k}") for k in range(size)]
    return Batch(
        latents=torch.randn(size, *shape, generator=draw),
        noise=torch.randn(size, *shape, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


class TestCaptions:
    @pytest.mark.parametrize("with_t5", [True, False], ids=["T5", "no T5"])
    @pytest.mark.parametrize("caption", CAPTIONS)
    def test_what_the_transformer_gets_is_what_the_pipeline_gives_it(self, folders, with_t5, caption):
        family = load(folders[with_t5], with_t5=with_t5)
        states, pooled = encode(plain_pipeline(folders[with_t5]), caption)
        found = {name: tensor[None] for name, tensor in family.encode_caption(caption).items()}
        assert found.keys() == {"clip_states", "pooled_projections"} | ({"t5_states"} if with_t5 else set())
        assert torch.equal(family._text_states(found), states) and states.shape == (1, 77 + LENGTH, T5_WIDTH)
        assert torch.equal(found["pooled_projections"], pooled)
        assert bool(states[:, 77:].any()) == with_t5

    def test_clip_is_trained_and_t5_is_not(self, family):
        tokens = {name: ids[None] for name, ids in family.tokenize("the cat").items()}
        assert tokens.keys() == family.text_encoders.keys() == {"text_encoder", "text_encoder_2"}
        assert family.encode_fixed("the cat").keys() == {"t5_states"}
        weights = [
            next(p for n, p in encoder.named_parameters() if "q_proj.weight" in n)
            for encoder in family.text_encoders.values()
        ]
        for weight in weights:
            weight.requires_grad_(True)
        found = family.embed(tokens)
        gradients = torch.autograd.grad(found["clip_states"].square().sum(), weights)
        for weight in weights:
            weight.requires_grad_(False)
        assert found.keys() == {"clip_states", "pooled_projections"} and all(one.any() for one in gradients)

    def test_t5_is_needed_for_captions_alone(self, folder):
        family = load(folder)
        family.remember({"a cat": family.encode_fixed("a cat")})
        del family.parts["text_encoder_3"]
        family.encoded("a cat")
        assert "text_encoder_3" not in family.parts
        family.encoded("another cat")
        assert "text_encoder_3" in family.parts


def test_latents_are_shifted_and_scaled_as_in_the_trainer(folder, family):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    moments = family.encode_pixels(pixels)
    noise = torch.randn(family.latent_shape(Extent(96, 64)), generator=torch.Generator().manual_seed(0))
    vae = plain_pipeline(folder).vae
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0).latent_dist
    expected = (posterior.mean + posterior.std * noise - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(family.sample_latents(moments, noise), expected[0])


class TestLoss:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_it_is_the_trainers_own_computation(self, version, tmp_path):
        """As in Diffusers' train_dreambooth_lora_sd3.py, whose first timestep is the noisiest."""
        folder = build_sd3(tmp_path, version=version)
        family, pipeline = load(folder), plain_pipeline(folder)
        batch, scheduler = make_batch(family), FlowMatchEulerDiscreteScheduler(shift=3.0)
        encoded = [encode(pipeline, f"caption {k}") for k in range(3)]
        sigmas = scheduler.sigmas[999 - batch.timesteps].reshape(-1, 1, 1, 1)
        prediction = pipeline.transformer(
            hidden_states=(1.0 - sigmas) * batch.latents + sigmas * batch.noise,
            timestep=scheduler.timesteps[999 - batch.timesteps],
            encoder_hidden_states=torch.cat([states for states, _ in encoded]),
            pooled_projections=torch.cat([pooled for _, pooled in encoded]),
        ).sample
        expected = torch.nn.functional.mse_loss(prediction, batch.noise - batch.latents)
        torch.testing.assert_close(family.loss(batch, LossOptions()), expected)

    @pytest.mark.parametrize(("with_t5", "dtype"), [(True, torch.float16), (False, torch.bfloat16)])
    def test_half_precision_is_near_and_float32(self, folders, with_t5, dtype):
        whole, half = (load(folders[with_t5], kind, with_t5=with_t5) for kind in (torch.float32, dtype))
        loss = half.loss(make_batch(half), LossOptions())
        assert half.parts["vae"].dtype == torch.float32 and loss.dtype == torch.float32
        torch.testing.assert_close(loss, whole.loss(make_batch(whole), LossOptions()), rtol=0.05, atol=0.01)


OPTIONS = {"num_inference_steps": 3, "width": 96, "height": 64, "max_sequence_length": LENGTH}


def draw(family, guidance_scale, negative_prompt=None):
    drawing = Drawing(
        prompt="a cat",
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        size=(96, 64),
    )
    return family.draw(drawing, torch.Generator().manual_seed(3), lambda: None)[0]


def draw_plainly(pipeline, **options):
    image = pipeline("a cat", generator=torch.Generator().manual_seed(3), **OPTIONS, **options).images[0]
    return np.asarray(image)


class TestDrawing:
    @pytest.mark.parametrize(
        ("with_t5", "guidance_scale", "negative_prompt"),
        [(True, 7.0, None), (False, 4.5, "a dog"), (True, 1.0, "a dog")],
    )
    def test_it_draws_what_diffusers_alone_draws(self, folders, with_t5, guidance_scale, negative_prompt):
        found = draw(load(folders[with_t5], with_t5=with_t5), guidance_scale, negative_prompt)
        options = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
        assert np.array_equal(found, draw_plainly(plain_pipeline(folders[with_t5]), **options)) and found.std() > 1

    def test_half_precision_draws(self, folder):
        found = draw(load(folder, torch.bfloat16), 4.0).astype(int)
        assert np.abs(found - draw(load(folder), 4.0)).mean() < 16


@pytest.fixture(scope="module")
def trained(folder):
    """A family with an adapter of the default layers and those of CLIP, of random numbers."""
    family = load(folder)
    parts = {name: family.parts[name] for name in model.SPEC.trained_components(with_text_encoders=True)}
    adapter = attach(parts, Lora(rank=2), 0, spec=model.SPEC)
    draws = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=draws) * 0.1
    return family, adapter


class TestFiles:
    def test_the_default_layers_are_those_of_diffusers_trainer(self, trained):
        names = {key.rsplit(".lora_", 1)[0] for key in trained[1].state()}
        blocks = {name for name in names if name.startswith("transformer.transformer_blocks.")}
        # Eight in each of two blocks, but the last block gives no text.
        assert len(blocks) == 15 and "transformer.transformer_blocks.0.attn.to_add_out" in blocks
        texts = names - blocks
        assert len(texts) == 4 * (2 + 3) and all(name.startswith("text_encoder") for name in texts)

    def test_diffusers_loads_it_whole(self, folder, trained, tmp_path):
        _, adapter = trained
        save_file(diffusers_state(adapter), tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        loaded = {
            f"{component}.{name}": tensor
            for component in model.SPEC.trained_components(with_text_encoders=True)
            for name, tensor in get_peft_model_state_dict(
                getattr(pipeline, component), adapter_name="default_0"
            ).items()
        }
        assert same(loaded, adapter.state())

    def test_names_for_web_interfaces(self, trained):
        family, adapter = trained
        names = {name.partition(".")[0] for name in webui_state(adapter, family.webui_name)}
        assert "lora_transformer_transformer_blocks_0_attn_to_out_0" in names
        assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in names
        assert "lora_te2_text_model_encoder_layers_2_self_attn_q_proj" in names
        assert len(names) == 15 + 4 * (2 + 3)

    def test_a_picture_with_the_lora_is_that_of_diffusers(self, folder, trained, tmp_path):
        family, adapter = trained
        save_file(diffusers_state(adapter), tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        without = draw_plainly(pipeline, guidance_scale=4.0)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        found = draw(family, 4.0)
        assert np.array_equal(found, draw_plainly(pipeline, guidance_scale=4.0))
        assert not np.array_equal(found, without)


def same(loaded, expected):
    """Whether these are the same tensors, by names with or without the text encoders' outer name."""
    bare = [{name.replace("text_model.", ""): tensor for name, tensor in one.items()} for one in (loaded, expected)]
    return bare[0].keys() == bare[1].keys() and all(torch.equal(bare[0][name], bare[1][name]) for name in bare[0])
