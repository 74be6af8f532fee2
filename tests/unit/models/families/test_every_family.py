"""What every family promises, on a tiny real pipeline of each."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.data.media.transforms import geometry
from engine.models import registry
from engine.models.family import Batch, LoadArgs
from engine.models.objectives.objective import LossOptions
from tests.support import tiny

CPU = torch.device("cpu")
BUILDERS = {"StableDiffusionPipeline": tiny.build_sd, "StableDiffusionXLPipeline": tiny.build_sdxl}
CAPTIONS = ["", "a cat", "a cat" * 100, "ünïcödé 猫 🐈"]


def test_every_family_is_here():
    assert BUILDERS.keys() == registry.FAMILIES.keys()


@pytest.fixture(scope="module", params=list(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return BUILDERS[name](tmp_path_factory.mktemp("model"))


def load(folder, dtype=torch.float32, prediction_type="epsilon", variant=None):
    entry = registry.detect(json.loads((folder / "model_index.json").read_text()))
    variants = dict.fromkeys(entry.weighted, variant)
    args = LoadArgs(folder=folder, variants=variants, dtype=dtype, device=CPU, prediction_type=prediction_type)
    return registry.load(entry, args)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def family(folder, dtype):
    return load(folder, dtype)


@pytest.fixture(scope="module")
def full(folder):
    return load(folder)


def modules(family):
    """Every part with weights, by its name in the pipeline."""
    return {name: part for name, part in family.pipeline.components.items() if isinstance(part, torch.nn.Module)}


def picture(k, side=64):
    return np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)


def raw(tensors):
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def view(k):
    return geometry((100 + k, 80), target=(64, 64), center_crop=False, crop_words=(0, k << 62), flip=bool(k % 2))


def make_batch(family, size):
    """As the trainer stacks it."""
    shape, draw = family.latent_shape(64, 64), torch.Generator().manual_seed(0)
    rows = [family.encode_caption(f"caption {k}") | family.place(view(k)) for k in range(size)]
    return Batch(
        latents=torch.randn(size, *shape, generator=draw),
        noise=torch.randn(size, *shape, generator=draw),
        timesteps=torch.tensor([3, 500, 999])[:size],
        conditioning={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


class TestEncoding:
    def test_an_images_bits_do_not_depend_on_what_else_is_encoded(self, family):
        first = [raw(family.encode_image(picture(k))) for k in range(4)]
        family.encode_image(picture(9, 128))
        assert [raw(family.encode_image(picture(k))) for k in (3, 2, 1, 0)] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_a_captions_bits_do_not_depend_on_what_else_is_encoded(self, family):
        first = [raw(family.encode_caption(caption)) for caption in CAPTIONS]
        assert [raw(family.encode_caption(caption)) for caption in CAPTIONS[::-1]] == first[::-1]
        assert len({str(found) for found in first}) == 4

    def test_a_caption_in_a_batch_of_tokens_is_what_it_is_alone(self, family):
        """But for the last bits of what is no sequence: a projection of one row adds up in another order."""
        tokens = [family.tokenize(caption) for caption in CAPTIONS]
        assert all(ids.dtype == torch.int64 and ids.shape == (77,) for own in tokens for ids in own.values())
        with torch.no_grad():
            embedded = family.embed({name: torch.stack([own[name] for own in tokens]) for name in tokens[0]})
        for k, caption in enumerate(CAPTIONS):
            torch.testing.assert_close(
                {name: rows[k] for name, rows in embedded.items()}, family.encode_caption(caption)
            )

    def test_moments_are_the_vaes(self, full):
        vae, pixels = full.pipeline.vae, picture(0)
        image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
        found = full.encode_image(pixels)
        torch.testing.assert_close(found["mean"], posterior.mean[0])
        torch.testing.assert_close(found["logvar"], posterior.logvar[0])
        assert found["mean"].shape == full.latent_shape(64, 64) == (4, 8, 8)

    def test_latents_have_the_shape_of_the_image(self, family):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
        moments = family.encode_image(pixels)
        shape = family.latent_shape(64, 128)
        assert family.sample_latents(moments, torch.zeros(shape)).shape == shape == (4, 8, 16)

    def test_encodings_keep_no_graph_and_no_shared_memory(self, family):
        for tensors in (family.encode_image(picture(0)), family.encode_caption("a cat"), family.place(view(0))):
            for tensor in tensors.values():
                assert not tensor.requires_grad and tensor.device == CPU

    def test_latents_are_drawn_from_the_posterior_and_scaled(self, full):
        moments = {"mean": torch.full((4, 2, 2), 3.0), "logvar": torch.full((4, 2, 2), 2 * np.log(5.0))}
        noise = torch.linspace(-1, 1, 16).reshape(4, 2, 2)
        latents = full.sample_latents(moments, noise)
        assert latents.dtype == torch.float32
        torch.testing.assert_close(latents, (3 + 5 * noise) * full.pipeline.vae.config.scaling_factor)


class TestLoading:
    def test_all_parts_are_frozen_in_the_dtype_asked_for_and_not_training(self, family, dtype, name):
        for part, module in modules(family).items():
            # XL's VAE asks for full precision, in its configuration.
            wanted = torch.float32 if (name, part) == ("StableDiffusionXLPipeline", "vae") else dtype
            assert {parameter.dtype for parameter in module.parameters()} == {wanted}, part
            assert not any(parameter.requires_grad for parameter in module.parameters()) and not module.training

    def test_weights_are_the_files(self, full, folder):
        for part in ("unet", "vae"):
            tensors = load_file(folder / part / "diffusion_pytorch_model.safetensors")
            state = modules(full)[part].state_dict()
            assert tensors.keys() == state.keys()
            assert all(torch.equal(tensors[name], state[name]) for name in tensors)

    def test_memory_is_owned_not_the_files(self, tmp_path, folder):
        copy = shutil.copytree(folder, tmp_path / "model")
        parts = modules(load(copy)).values()
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
        assert raw(other.encode_image(picture(0))) == raw(full.encode_image(picture(0)))
        assert raw(other.encode_caption("a cat")) == raw(full.encode_caption("a cat"))
        batch = make_batch(full, 1)
        assert torch.equal(other.loss(batch, LossOptions()), full.loss(batch, LossOptions()))

    def test_a_half_precision_model_is_loaded_in_full_precision(self, name, tmp_path):
        """Its text encoders' configurations say float16."""
        folder = BUILDERS[name](tmp_path / "model", variant="fp16", only_variant=True)
        assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
        for module in modules(load(folder, variant="fp16")).values():
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}

    def test_the_pipeline_is_the_models_and_consists_of_the_loaded_parts(self, full, name):
        pipeline = full.pipeline
        assert type(pipeline).__name__ == name and pipeline.unet is full.denoiser
        again = modules(full)
        assert all(module is again[part] for part, module in modules(full).items())

    def test_a_text_encoder_that_is_trained_stays_on_the_device(self, folder):
        family, away = load(folder), torch.device("meta")
        family.text_encoders["text_encoder"].register_parameter("lora", torch.nn.Parameter(torch.zeros(1)))
        trained = family.text_encoders["text_encoder"].get_parameter("lora")
        family.move_encoders(away)
        for name, module in modules(family).items():
            stays = name in ("unet", "text_encoder")
            assert {parameter.device for parameter in module.parameters()} == {CPU if stays else away}, name
        trained.requires_grad_(False)
        family.move_encoders(away)
        assert {p.device for encoder in family.text_encoders.values() for p in encoder.parameters()} == {away}

    def test_text_encoders_have_their_names_in_the_pipeline(self, full):
        found = {name: part for name, part in modules(full).items() if name.startswith("text_encoder")}
        assert found.keys() == full.text_encoders.keys()
        assert all(part is full.text_encoders[name] for name, part in found.items())

    def test_the_scheduler_predicts_what_the_training_predicts(self, folder):
        assert load(folder, prediction_type="v_prediction").pipeline.scheduler.config.prediction_type == (
            "v_prediction"
        )


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
