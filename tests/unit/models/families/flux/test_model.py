"""FLUX.1's physics on a tiny real pipeline, against Diffusers' own functions."""

import logging

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from engine.models import registry
from engine.models.components import locating
from engine.models.families.flux import model
from engine.models.family import Batch, Drawing, LoadArgs
from engine.models.objectives.objective import LossOptions
from engine.task.plan.extent import Extent
from engine.task.task import Dataset, Lora, Model
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.formats.files import diffusers_state, webui_state
from tests.support import tiny, tiny_flux

CPU = torch.device("cpu")
LENGTH = 40
CAPTIONS = ["", "the cat", "a cat" * 100, "ünïcödé 猫 🐈"]
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that is told a guidance scale, and one that is not."""
    return {
        guidance: tiny_flux.build_flux(tmp_path_factory.mktemp("model"), guidance=guidance)
        for guidance in (True, False)
    }


@pytest.fixture(scope="module")
def folder(folders):
    return folders[True]


def load(folder, dtype=torch.float32, **options):
    defaults = {"caption_tokens": LENGTH, "prediction_type": "flow"}
    variants = dict.fromkeys(model.SPEC.weighted)
    return model.load(LoadArgs(folder=folder, variants=variants, dtype=dtype, device=CPU, **defaults | options))


@pytest.fixture(scope="module")
def family(folder):
    return load(folder)


def plain_pipeline(folder):
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()  # aligned otherwise than in a file's memory map
    return pipeline


@pytest.fixture(scope="module")
def plain(folders):
    """Diffusers' pipelines of both models, which no test changes."""
    return {guidance: plain_pipeline(folder) for guidance, folder in folders.items()}


def make_batch(family, size=3, height=64, width=96):
    shape, draw = family.latent_shape(Extent(width, height)), torch.Generator().manual_seed(0)
    rows = [family.encode_caption(f"caption {k}") for k in range(size)]
    return Batch(
        latents=torch.randn(size, *shape, generator=draw),
        noise=torch.randn(size, *shape, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


class TestCaptions:
    @pytest.mark.parametrize("caption", CAPTIONS)
    def test_embeddings_are_those_of_the_pipeline(self, plain, family, caption):
        with torch.no_grad():
            states, pooled, _ = plain[True].encode_prompt(caption, max_sequence_length=LENGTH)
        found = family.encode_caption(caption)
        assert found.keys() == {"encoder_hidden_states", "pooled_projections"}
        assert torch.equal(found["encoder_hidden_states"], states[0]) and states.shape[1:] == (
            LENGTH,
            tiny_flux.T5_WIDTH,
        )
        assert torch.equal(found["pooled_projections"], pooled[0]) and pooled.shape[1:] == (tiny.HIDDEN,)

    def test_only_clip_is_trained(self, family):
        tokens = family.tokenize("the cat")
        assert tokens.keys() == family.text_encoders.keys() == {"text_encoder"}
        assert family.encode_fixed("the cat").keys() == {"encoder_hidden_states"}
        weight = next(p for n, p in family.parts["text_encoder"].named_parameters() if "q_proj.weight" in n)
        weight.requires_grad_(True)
        found = family.embed({name: ids[None] for name, ids in tokens.items()})
        (gradient,) = torch.autograd.grad(found["pooled_projections"].square().sum(), [weight])
        weight.requires_grad_(False)
        assert gradient.any()

    @pytest.mark.parametrize("guidance, usual", [(True, 512), (False, 256)])
    def test_the_usual_length_is_that_of_the_base_model(self, folders, tmp_path, guidance, usual):
        """A family that is loaded has it, too: caches tell other lengths apart by it."""
        named = Model(name=str(folders[guidance]))
        base = locating.locate(named, pinned=None, weights=True, report=lambda line: None, cache_dir=tmp_path)
        found = registry.load(
            base.family,
            LoadArgs(
                folder=base.folder,
                variants=base.variants,
                dtype=torch.float32,
                device=CPU,
                prediction_type="flow",
                caption_tokens=usual,
            ),
        )
        lengths = [found.spec.caption_tokens.unusual(Dataset(max_caption_tokens=length)) for length in (None, 256, 512)]
        assert lengths == [None, *(None if length == usual else length for length in (256, 512))]


class TestLatents:
    def test_they_are_shifted_and_scaled_as_diffusers_does(self, plain, family):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        moments = family.encode_pixels(pixels)
        noise = torch.randn(family.latent_shape(Extent(96, 64)), generator=torch.Generator().manual_seed(0))
        vae = plain[True].vae
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
        expected = (posterior.mean + posterior.std * noise - vae.config.shift_factor) * vae.config.scaling_factor
        torch.testing.assert_close(family.sample_latents(moments, noise), expected[0])


class TestLoss:
    @pytest.mark.parametrize("guidance", [True, False])
    def test_it_is_the_trainers_own_computation(self, folders, plain, guidance):
        """As in Diffusers' train_dreambooth_lora_flux.py, whose first timestep is the noisiest."""
        family = load(folders[guidance], flow_shift=1.0, guidance_scale=2.5)
        batch = make_batch(family)
        scheduler, pipeline = FlowMatchEulerDiscreteScheduler(), plain[guidance]
        timesteps = scheduler.timesteps[999 - batch.timesteps]
        sigmas = scheduler.sigmas[999 - batch.timesteps].reshape(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * batch.latents + sigmas * batch.noise
        size, channels, height, width = noisy.shape
        prediction = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, size, channels, height, width),
            timestep=timesteps / 1000,
            guidance=torch.tensor([2.5]).expand(size) if guidance else None,
            pooled_projections=batch.conditioning["pooled_projections"],
            encoder_hidden_states=batch.conditioning["encoder_hidden_states"],
            txt_ids=torch.zeros(LENGTH, 3),
            img_ids=pipeline._prepare_latent_image_ids(size, height // 2, width // 2, CPU, torch.float32),
        ).sample
        prediction = pipeline._unpack_latents(prediction, 8 * height, 8 * width, pipeline.vae_scale_factor)
        expected = torch.nn.functional.mse_loss(prediction, batch.noise - batch.latents)
        torch.testing.assert_close(family.loss(batch, LossOptions()), expected)

    def test_the_guidance_scale_is_told(self, folder, family):
        batch = make_batch(family)
        losses = {family.loss(batch, LossOptions()), load(folder, guidance_scale=3.5).loss(batch, LossOptions())}
        assert len({float(loss) for loss in losses}) == 2

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_is_near_and_float32(self, folder, family, dtype):
        half = load(folder, dtype)
        assert half.parts["vae"].dtype == torch.float32
        loss = half.loss(make_batch(half), LossOptions())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, family.loss(make_batch(family), LossOptions()), rtol=0.05, atol=0.01)


class TestDrawing:
    @pytest.mark.parametrize("guidance", [True, False])
    @pytest.mark.parametrize("is_remembered", [True, False])
    def test_it_draws_what_diffusers_alone_draws(self, folders, plain, guidance, is_remembered):
        family = load(folders[guidance])
        if is_remembered:
            family.remember({"a cat": family.encode_fixed("a cat")})
            del family.parts["text_encoder_2"]
        drawing = Drawing(
            prompt="a cat", negative_prompt=None, guidance_scale=3.5, num_inference_steps=3, size=(96, 64)
        )
        found = family.draw(drawing, torch.Generator().manual_seed(3), lambda: None)
        expected = plain[guidance](
            "a cat",
            guidance_scale=3.5,
            num_inference_steps=3,
            width=96,
            height=64,
            max_sequence_length=LENGTH,
            generator=torch.Generator().manual_seed(3),
        ).images[0]
        assert np.array_equal(found[0], np.asarray(expected)) and found.std() > 1
        assert ("text_encoder_2" in family.parts) == (not is_remembered)


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
def trained(folder):
    """A family with an adapter of the default layers and CLIP's, of random numbers."""
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
        assert len([name for name in names if name.startswith("transformer.transformer_blocks.")]) == 2 * 12
        assert len([name for name in names if name.startswith("transformer.single_transformer_blocks.")]) == 2 * 3
        assert len([name for name in names if name.startswith("text_encoder.")]) == 2 * len(TEXT_LAYERS)
        assert len(names) == 2 * (12 + 3 + len(TEXT_LAYERS)) and "transformer.proj_out" not in names

    def test_diffusers_loads_it_whole(self, folder, trained, tmp_path, complaints):
        adapter = trained[1]
        save_file(diffusers_state(adapter), tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        assert complaints == []
        loaded = {}
        for component in ("transformer", "text_encoder"):
            state = get_peft_model_state_dict(getattr(pipeline, component), adapter_name="default_0")
            loaded |= {f"{component}.{name}": tensor for name, tensor in state.items()}
        expected = {name.replace("text_model.", ""): tensor for name, tensor in adapter.state().items()}
        assert {name.replace("text_model.", "") for name in loaded} == expected.keys()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, expected[name.replace("text_model.", "")]), name

    def test_web_interfaces_are_given_diffusers_names_with_underscores(self, trained):
        """As ComfyUI's `model_lora_keys_unet` wants them (comfy/lora.py)."""
        names = {key.partition(".")[0] for key in webui_state(trained[1], trained[0].webui_name)}
        assert "lora_transformer_transformer_blocks_0_ff_context_net_0_proj" in names
        assert "lora_transformer_single_transformer_blocks_1_attn_to_q" in names
        assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in names
        assert len(names) == 2 * (12 + 3 + len(TEXT_LAYERS))

    def test_a_picture_with_the_lora_is_that_of_diffusers(self, folder, trained, tmp_path):
        family, adapter = trained
        save_file(diffusers_state(adapter), tmp_path / "lora.safetensors")
        pipeline = plain_pipeline(folder)
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        drawing = Drawing(
            prompt="a cat", negative_prompt=None, guidance_scale=3.5, num_inference_steps=2, size=(64, 64)
        )
        found = family.draw(drawing, torch.Generator().manual_seed(3), lambda: None)
        options = {"num_inference_steps": 2, "width": 64, "height": 64, "max_sequence_length": LENGTH}
        expected = pipeline("a cat", generator=torch.Generator().manual_seed(3), **options).images[0]
        assert np.array_equal(found[0], np.asarray(expected))
