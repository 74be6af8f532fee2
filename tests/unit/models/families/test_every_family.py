"""What every family promises, on a tiny real model of each, and on one that the engine does not know."""

import json
import shutil
import weakref
from dataclasses import replace
from functools import partial
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file

from engine.data.media.geometry import geometry
from engine.models import registry
from engine.models.components.block_inputs import BlockInputs
from engine.models.family import Batch, Drawing, LoadArgs
from engine.models.objectives.flow.spec import EULER, WITH_FLOW_SIGMAS
from engine.models.objectives.objective import LossOptions
from engine.models.parts.tape import AdapterTape, Tape
from engine.models.quantization.rule import is_in_a_block, quantised_bytes
from engine.models.spec import Workload
from engine.task.plan.extent import Extent
from engine.task.task import Lora
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.targets import find_targets, is_target
from tests.support import tiny, toy_family
from tests.support.tiny_cogvideox import build_cogvideox
from tests.support.tiny_flux import build_flux
from tests.support.tiny_flux2_klein import build_flux2_klein
from tests.support.tiny_hunyuan_video import build_hunyuan_video
from tests.support.tiny_ltx import build_ltx
from tests.support.tiny_qwen_image import build_qwen_image
from tests.support.tiny_sd3 import build_sd3
from tests.support.tiny_wan import build_wan
from tests.support.tiny_z_image import build_z_image

CPU = torch.device("cpu")
BUILDERS = tiny.BUILDERS | {
    "StableDiffusion3Pipeline": build_sd3,
    "FluxPipeline": build_flux,
    "QwenImagePipeline": build_qwen_image,
    "ZImagePipeline": build_z_image,
    "Flux2KleinPipeline": build_flux2_klein,
    "CogVideoXPipeline": build_cogvideox,
    "HunyuanVideoPipeline": build_hunyuan_video,
    "LTXPipeline": build_ltx,
    "WanPipeline": build_wan,
    toy_family.SPEC.pipeline: toy_family.build_toy,
}
ENDS_IN_NOISE = {"CogVideoXPipeline"}
"""Those whose last timestep is pure noise, from which no noise can be predicted."""
NONE_TRAINED = "the family has no text encoder that can be trained"
NO_DYNAMIC_SHIFT = {"HunyuanVideoPipeline", "WanPipeline"}
"""Pipelines that do not tell the scheduler the size of what they draw; their models are refused when loaded."""
CAPTIONS = ["", "a cat", "a cat" * 100, "ünïcödé 猫 🐈"]


def test_every_family_is_here():
    assert BUILDERS.keys() == {*registry.FAMILIES, toy_family.SPEC.pipeline}


@pytest.fixture(scope="module", params=list(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return BUILDERS[name](tmp_path_factory.mktemp("model"))


def load(folder, dtype=torch.float32, variant=None, quantization=None, offloads=False, prediction_type=None):
    index = json.loads((folder / "model_index.json").read_text())
    with mock.patch.dict(registry.FAMILIES, toy_family.ROW):
        spec = registry.detect(index)
    variants = dict.fromkeys(spec.weighted, variant)
    args = LoadArgs(
        folder=folder,
        variants=variants,
        dtype=dtype,
        quantised={spec.denoiser: quantization} if quantization else {},
        offloaded={spec.denoiser: spec.block_lists} if offloads else {},
        device=CPU,
        prediction_type=prediction_type or ("v_prediction" if spec.pipeline in ENDS_IN_NOISE else "epsilon"),
        caption_tokens=spec.caption_tokens.usual,
    )
    return registry.load(spec, args)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def family(folder, dtype):
    return load(folder, dtype)


@pytest.fixture(scope="module")
def full(folder):
    return load(folder)


def picture(k, side=64):
    return np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pixels_of(family, k, side=64):
    """An image, or for families of clips one of two frames of latents."""
    if family.spec.medium == "image":
        return picture(k, side)
    return np.stack([picture(100 * k + frame, side) for frame in range(family.spec.frame_step + 1)])


def raw(tensors):
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def view(k):
    return geometry((100 + k, 80), target=(64, 64), center_crop=False, crop_words=(0, k << 62), flip=bool(k % 2))


def parts_of(family):
    """All parts with weights by name, loaded if they are not yet."""
    return {name: family.parts[name] for name in family.spec.weighted}


def trainable(spec):
    """The names of all components that can be trained."""
    return spec.trained_components(with_text_encoders=bool(spec.text_encoders))


def diffusers_parts(family):
    """The names of the parts that Diffusers reads and writes."""
    return [name for name, part in parts_of(family).items() if isinstance(part, ModelMixin)]


def make_batch(family, size):
    """As the trainer stacks it."""
    shape, draw = family.latent_shape(Extent(64, 64)), torch.Generator().manual_seed(0)
    rows = [family.encode_caption(f"caption {k}") | family.place(view(k)) for k in range(size)]
    return Batch(
        latents=torch.randn(size, *shape, generator=draw),
        noise=torch.randn(size, *shape, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


class TestEncoding:
    def test_an_images_bits_do_not_depend_on_what_else_is_encoded(self, family):
        first = [raw(family.encode_pixels(pixels_of(family, k))) for k in range(4)]
        family.encode_pixels(pixels_of(family, 9, 128))
        assert [raw(family.encode_pixels(pixels_of(family, k))) for k in (3, 2, 1, 0)] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_a_captions_bits_do_not_depend_on_what_else_is_encoded(self, family):
        first = [raw(family.encode_caption(caption)) for caption in CAPTIONS]
        assert [raw(family.encode_caption(caption)) for caption in CAPTIONS[::-1]] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_a_caption_in_a_batch_of_tokens_is_what_it_is_alone(self, family):
        """But for the last bits of what is no sequence: a projection of one row adds up in another order."""
        if not family.spec.text_encoders:
            pytest.skip(NONE_TRAINED)
        tokens = [family.tokenize(caption) for caption in CAPTIONS]
        assert all(ids.dtype == torch.int64 and ids.ndim == 1 for own in tokens for ids in own.values())
        with torch.no_grad():
            embedded = family.embed({name: torch.stack([own[name] for own in tokens]) for name in tokens[0]})
        for k, caption in enumerate(CAPTIONS):
            torch.testing.assert_close(
                {name: rows[k] for name, rows in embedded.items()} | family.encode_fixed(caption),
                family.encode_caption(caption),
            )

    def test_latents_have_the_shape_of_the_image(self, family):
        pixels = pixels_of(family, 0, 128)[..., :64, :, :]
        moments = family.encode_pixels(pixels)
        shape = family.latent_shape(Extent(128, 64, len(pixels) if pixels.ndim == 4 else 1))
        latents = family.sample_latents(moments, torch.zeros(shape))
        assert latents.shape == shape and shape[-1] == 2 * shape[-2] and latents.dtype == torch.float32

    def test_a_plan_counts_tokens_as_the_training_does(self, full):
        """A shift of noise levels that depends on the size is the one that `--plan` names."""
        if full.spec.objective == "flow":
            assert 64 // full.latent_shape(Extent(64, 64))[-1] * full.objective.patch == full.spec.token_side

    def test_encodings_keep_no_graph_and_no_shared_memory(self, family):
        for tensors in (
            family.encode_pixels(pixels_of(family, 0)),
            family.encode_caption("a cat"),
            family.place(view(0)),
        ):
            for tensor in tensors.values():
                assert not tensor.requires_grad and tensor.device == CPU


class TestLoading:
    def test_all_parts_are_frozen_in_the_dtype_asked_for_and_not_training(self, family, dtype, name):
        for part, module in parts_of(family).items():
            # XL's VAE asks for full precision, in its configuration; families with a transformer always encode in it.
            is_full = part == "vae" and (name == "StableDiffusionXLPipeline" or family.spec.denoiser == "transformer")
            wanted, kept = torch.float32 if is_full else dtype, getattr(module, "_keep_in_fp32_modules", None) or ()
            for key, parameter in module.named_parameters():
                is_kept = part == family.spec.denoiser and any(name in key.split(".") for name in kept)
                assert parameter.dtype == (torch.float32 if is_kept else wanted), (part, key)
            assert not any(parameter.requires_grad for parameter in module.parameters()) and not module.training

    def test_weights_are_the_files(self, full, folder):
        for part in diffusers_parts(full):
            tensors = load_file(folder / part / "diffusion_pytorch_model.safetensors")
            state = full.parts[part].state_dict()
            assert tensors.keys() == state.keys()
            assert all(torch.equal(tensors[name], state[name]) for name in tensors)

    def test_memory_is_owned_not_the_files(self, tmp_path, folder):
        copy = shutil.copytree(folder, tmp_path / "model")
        parts = parts_of(load(copy)).values()
        before = [tensor.clone() for module in parts for tensor in (*module.parameters(), *module.buffers())]
        for path in copy.rglob("*.safetensors"):
            with path.open("r+b") as file:  # in place: a memory map would show it
                file.write(b"\xff" * path.stat().st_size)
        after = [tensor for module in parts for tensor in (*module.parameters(), *module.buffers())]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert all(tensor.data_ptr() % 64 == 0 for tensor in after if tensor.numel())

    def test_the_alignment_of_files_changes_no_bit(self, tmp_path, folder, full):
        copy = shutil.copytree(folder, tmp_path / "model")
        for path in copy.rglob("*.safetensors"):
            save_file(load_file(path), path, metadata={"format": "pt", "x": "y" * 13})
        other = load(copy)
        assert raw(other.encode_pixels(pixels_of(full, 0))) == raw(full.encode_pixels(pixels_of(full, 0)))
        assert raw(other.encode_caption("a cat")) == raw(full.encode_caption("a cat"))
        batch = make_batch(full, 1)
        assert torch.equal(other.loss(batch, LossOptions()), full.loss(batch, LossOptions()))

    def test_a_text_encoder_that_is_trained_stays_on_the_device(self, folder):
        family, away = load(folder), torch.device("meta")
        if not family.spec.text_encoders:
            pytest.skip(NONE_TRAINED)
        family.text_encoders["text_encoder"].register_parameter("lora", torch.nn.Parameter(torch.zeros(1)))
        trained = family.text_encoders["text_encoder"].get_parameter("lora")
        family.move_encoders(away)
        for name, module in parts_of(family).items():
            stays = name in (family.spec.denoiser, "text_encoder")
            assert {parameter.device for parameter in module.parameters()} == {CPU if stays else away}, name
        trained.requires_grad_(False)
        family.move_encoders(away)
        assert {p.device for encoder in family.text_encoders.values() for p in encoder.parameters()} == {away}

    def test_the_parts_are_those_of_the_row(self, full):
        spec = full.spec
        assert parts_of(full).keys() == full.parts.keys() and full.parts[spec.denoiser] is full.denoiser
        assert {name: full.parts[name] for name in spec.text_encoders} == full.text_encoders

    def test_default_targets_are_layers_of_the_parts(self, full):
        for component in trainable(full.spec):
            found = find_targets(full.parts[component], full.spec.targets_of(component, None))
            names = [full.spec.lora_name(component, module) for module in found]
            assert names and all(full.webui_name(*name.split(".", 1)) for name in names)

    def test_the_footprint_counts_parameters(self, full, folder):
        """Those of the parts and of the adapter, by the configurations alone."""
        spec, lora = full.spec, Lora(rank=3)

        def tape(targets):
            return AdapterTape(is_adapted=is_target(targets), rank=lora.rank, width=4, norm_width=4)

        workload = Workload(
            batch=1,
            resolution=64,
            caption_tokens=spec.caption_tokens.usual,
            value_bytes=4,
            is_float16=False,
            trains_text_encoders=True,
            denoiser=tape(spec.lora_targets),
            text_encoders=tape(spec.text_lora_targets),
        )
        fixed = spec.footprint(lambda part: json.loads((folder / part / "config.json").read_text()), workload)
        numbers = {name: sum(p.numel() for p in part.parameters()) for name, part in parts_of(full).items()}
        texts = sum(numbers[name] for name in spec.text_encoders)
        assert (workload.denoiser.parameters, workload.text_encoders.parameters) == (numbers[spec.denoiser], texts)
        assert fixed.parameters == sum(numbers.values()) - numbers[spec.denoiser] - texts
        parts = {name: load(folder).parts[name] for name in trainable(spec)}
        adapter = attach(parts, lora, 0, spec=spec)
        trained = {name: parameter.numel() for name, parameter in adapter.parameters.items()}
        denoisers = sum(count for name, count in trained.items() if spec.is_denoisers(name))
        assert (workload.denoiser.trained, workload.text_encoders.trained) == (
            denoisers,
            sum(trained.values()) - denoisers,
        )


class TestQuantised:
    def test_its_bytes_are_those_that_are_predicted(self, full, folder):
        """The names in the footprint are those of the layers, by which both know which are quantised."""
        spec, quantization = full.spec, "nf4"
        tape = Tape(width=4, norm_width=4)
        workload = Workload(
            batch=1,
            resolution=64,
            caption_tokens=spec.caption_tokens.usual,
            value_bytes=4,
            is_float16=False,
            trains_text_encoders=False,
            denoiser=replace(tape, stored=partial(quantised_bytes, quantization)),
            text_encoders=tape,
        )
        spec.footprint(lambda part: json.loads((folder / part / "config.json").read_text()), workload)
        denoiser, predicted = load(folder, quantization=quantization).denoiser, workload.denoiser
        names = denoiser.state_dict().keys()
        held = sum(tensor.nbytes for tensor in (*denoiser.parameters(), *denoiser.buffers()))
        assert any(name.endswith("qweight") for name in names) and predicted.quantised_bytes < held
        assert 4 * predicted.frozen + predicted.quantised_bytes == held


class TestOffloaded:
    """Families whose denoiser's blocks can wait in main memory."""

    DRAWING = Drawing(prompt="a", negative_prompt=None, guidance_scale=3.0, num_inference_steps=2, size=(64, 64))

    @pytest.mark.parametrize("quantization, dtype", [(None, torch.float32), ("nf4", torch.bfloat16)])
    def test_the_loss_the_gradients_and_an_image_have_the_same_bits(self, full, folder, quantization, dtype):
        if not full.spec.block_lists:
            pytest.skip("the denoiser has no such blocks")
        found = []
        for offloads in (False, True):
            family = load(folder, dtype, quantization=quantization, offloads=offloads)
            denoiser = family.denoiser
            adapter = attach(
                {full.spec.denoiser: denoiser.to(CPU)}, Lora(rank=3, init_lora_weights=False), 0, spec=full.spec
            )
            recompute_activations(denoiser, BlockInputs(CPU) if offloads else None)
            loss = family.loss(make_batch(full, 2), LossOptions())
            gradients = torch.autograd.grad(loss, list(adapter.parameters.values()))
            drawing = Drawing(
                prompt="a", negative_prompt=None, guidance_scale=3.0, num_inference_steps=2, size=(64, 64)
            )
            image = family.draw(drawing, torch.Generator().manual_seed(1), lambda: None)
            found.append([loss.item(), [gradient.tolist() for gradient in gradients], image.tolist()])
        assert found[0] == found[1]
        weights = sum(tensor.untyped_storage().nbytes() for tensor in denoiser.state_dict().values())
        outside = sum(tensor.nbytes for name, tensor in denoiser.state_dict().items() if not is_in_a_block(name))
        trained = sum(parameter.nbytes for parameter in adapter.parameters.values())
        assert weights < 1.2 * (outside + trained) + 64 * len(denoiser.state_dict())


class TestDrawing:
    def test_an_image_depends_on_its_prompt_and_its_seed_alone(self, full):
        drawing = Drawing(
            prompt="a cat", negative_prompt=None, guidance_scale=3.0, num_inference_steps=2, size=(96, 64)
        )
        steps = []

        def draw(drawing, seed):
            return full.draw(drawing, torch.Generator().manual_seed(seed), lambda: steps.append(1))

        first = draw(drawing, 1)
        assert first.shape == (1, 64, 96, 3) and first.dtype == np.uint8 and len(steps) >= 2
        other, third = draw(replace(drawing, prompt="a dog"), 1), draw(drawing, 2)
        assert np.array_equal(draw(drawing, 1), first)
        assert not np.array_equal(other, first) and not np.array_equal(third, first)

    def test_it_tells_which_part_computed_values_that_are_not_finite(self, full):
        if "vae" not in full.spec.weighted:
            pytest.skip("a family without a VAE draws without Diffusers' pipelines")
        told = []
        drawing = Drawing(
            prompt="a",
            negative_prompt=None,
            guidance_scale=1.0,
            num_inference_steps=2,
            size=(64, 64),
            not_finite=told.append,
        )
        for part, module in ((None, None), ("VAE", full.parts["vae"].decoder), ("denoiser", full.denoiser)):
            parameter = None if module is None else list(module.parameters())[-1]
            before = None if parameter is None else parameter.detach().clone()
            if parameter is not None:
                parameter.data.fill_(torch.nan)
            with np.errstate(invalid="ignore"):
                full.draw(drawing, torch.Generator().manual_seed(0), lambda: None)
            if parameter is not None:
                parameter.data.copy_(before)
            assert told == ([] if part is None else [part])
            told.clear()

    def test_it_draws_with_every_scheduler_that_is_allowed(self, folder, full):
        if full.spec.objective != "flow":
            pytest.skip("test_schedulers.py has those of diffusion")
        drawing = Drawing(prompt="", negative_prompt=None, guidance_scale=0.0, num_inference_steps=2, size=(64, 64))
        before, allowed = full.scheduler, full.spec.schedulers or {EULER, *WITH_FLOW_SIGMAS}
        for name in allowed:
            for shifting in ({}, {"use_dynamic_shifting": True})[: 1 if full.spec.pipeline in NO_DYNAMIC_SHIFT else 2]:
                config = {"prediction_type": "flow_prediction", "use_flow_sigmas": name != EULER, **shifting}
                full.scheduler = getattr(diffusers, name).from_config(config)
                full.draw(drawing, torch.Generator().manual_seed(0), lambda: None)
        full.scheduler = before


class TestLoss:
    def test_half_precision_is_near_and_float32(self, folder, full):
        half = load(folder, torch.bfloat16).loss(make_batch(full, 3), LossOptions())
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full.loss(make_batch(full, 3), LossOptions()), rtol=0.05, atol=0.01)

    def test_the_conditioning_matters(self, full):
        batch = make_batch(full, 2)
        plain = full.loss(batch, LossOptions())
        for name, tensor in batch.conditioning.items():
            changed = Batch(
                latents=batch.latents,
                noise=batch.noise,
                timesteps=batch.timesteps,
                conditioning=batch.conditioning | {name: tensor + 1},
            )
            assert not torch.equal(full.loss(changed, LossOptions()), plain), name


def test_text_encoders_that_are_never_trained_can_be_freed(folder):
    """Nothing else refers to them, and images of prompts that are encoded already are drawn without them."""
    family = load(folder)
    family.remember({prompt: family.encode_caption(prompt) for prompt in ("a cat", family.spec.empty_prompt)})
    family.move_encoders(CPU)
    freed = {name: weakref.ref(family.parts.pop(name)) for name in family.spec.fixed_text_encoders}
    assert [name for name, part in freed.items() if part() is not None] == []
    drawing = Drawing(prompt="a cat", negative_prompt=None, guidance_scale=3.0, num_inference_steps=2, size=(64, 64))
    family.draw(drawing, torch.Generator().manual_seed(0), lambda: None)
    assert not freed.keys() & family.parts.keys()
