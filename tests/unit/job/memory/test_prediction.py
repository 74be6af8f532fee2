"""Predictions of memory against what torch holds in fact, for the published models' sizes."""

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.job import memory
from engine.models import registry
from engine.models.parts.tape import AdapterTape
from engine.models.spec import Workload
from engine.task.task import Lora
from engine.training.methods.lora.targets import is_target
from engine.training.optimizers.layout import as_matrix
from tests.support.fake_memory import autoencoding_bytes, fake_adapted, training_bytes
from tests.support.published_models import GIB, PIPELINES, PUBLISHED, base_of, gpu, peak, task_of

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
DROPOUT = Lora(rank=8, dropout=0.1)
CONVOLUTIONS = Lora(rank=8, target_modules=("conv1", "conv2", "to_q", "proj_in", "ff.net.0.proj", "conv_in"))


def footprint_of(name, lora, precision, *, batch=1, resolution=512, is_cuda=True):
    """A published model's footprint by its family: the tapes, and the rest."""
    family, width = registry.FAMILIES[PIPELINES[name]], 4 if precision == "no" else 2

    def tape(targets):
        norm_width = 4 if is_cuda else width
        return AdapterTape(
            is_adapted=is_target(targets),
            rank=lora.rank,
            width=width,
            norm_width=norm_width,
            is_dropping=lora.dropout > 0,
        )

    workload = Workload(
        batch=batch,
        resolution=resolution,
        caption_tokens=75,
        value_bytes=width,
        is_float16=False,
        trains_text_encoders=False,
        denoiser=tape(family.targets_of(family.denoiser, lora.target_modules)),
        text_encoders=tape(()),
    )
    return workload, family.footprint(PUBLISHED[name].__getitem__, workload)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["sd1", "sd2", "xl"])
class TestSizes:
    def test_of_the_denoiser_and_its_adapter(self, name):
        lora = CONVOLUTIONS if name == "sd1" else Lora(rank=4)
        unet, adapter, _ = fake_adapted(UNet2DConditionModel, PUBLISHED[name]["unet"], torch.float32, lora)
        trained = sum(parameter.numel() for parameter in adapter.parameters.values())
        tape = footprint_of(name, lora, "no")[0].denoiser
        assert (tape.parameters, tape.trained) == (num_parameters(unet) - trained, trained)
        shapes = Counter(as_matrix(tuple(parameter.shape)) for parameter in adapter.parameters.values())
        assert tape.trained_shapes == shapes

    def test_of_the_autoencoder(self, name):
        config = PUBLISHED[name]["vae"]
        with torch.device("meta"):
            vae = AutoencoderKL(**{key: value for key, value in config.items() if not key.startswith("_")})
        found = footprint_of(name, Lora(), "no")[1].images
        assert (found.parameters, found.weight_bytes) == (num_parameters(vae), 4 * num_parameters(vae))

    def test_of_the_text_encoders(self, name):
        expected = 0
        for component in (key for key in PUBLISHED[name] if key.startswith("text_encoder")):
            config = PUBLISHED[name][component]
            with_projection = config["architectures"] == ["CLIPTextModelWithProjection"]
            with torch.device("meta"):
                encoder = (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(CLIPTextConfig(**config))
            expected += num_parameters(encoder)
        assert footprint_of(name, Lora(), "no")[0].text_encoders.parameters == expected


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


CASES = [
    ("sd1", 64, 1, "bf16", Lora(rank=4), True, False),
    slow("sd1", 64, 1, "bf16", Lora(rank=4), True, True),
    slow("sd1", 48, 3, "no", CONVOLUTIONS, True, False),
    ("sd1", 48, 3, "no", CONVOLUTIONS, True, True),
    ("sd1", 32, 2, "bf16", DROPOUT, False, False),
    slow("sd1", 32, 2, "bf16", DROPOUT, False, True),
    slow("sd1", 64, 4, "bf16", CONVOLUTIONS, True, False),
    slow("sd1", 64, 4, "bf16", CONVOLUTIONS, True, True),
    slow("xl", 128, 1, "bf16", Lora(rank=8), True, False),
    slow("xl", 128, 1, "bf16", Lora(rank=8), True, True),
]


@pytest.mark.parametrize("name, side, batch, precision, lora, is_cuda, recompute", CASES)
def test_activations_are_predicted_within_15_percent(name, side, batch, precision, lora, is_cuda, recompute):
    config = PUBLISHED[name]["unet"]
    tape = footprint_of(name, lora, precision, batch=batch, resolution=8 * side, is_cuda=is_cuda)[0].denoiser
    predicted = tape.peak(recompute=recompute)
    found = training_bytes(
        UNet2DConditionModel,
        config,
        side=side,
        batch=batch,
        dtype=DTYPES[precision],
        recompute=recompute,
        options=lora,
        is_cuda=is_cuda,
    )
    assert predicted == pytest.approx(found - 4 * tape.trained, rel=0.15)


@pytest.mark.parametrize("name, side, dtype", [("sd1", 512, torch.bfloat16), ("xl", 1024, torch.float32)])
@pytest.mark.parametrize("decode", [False, True])
def test_the_autoencoder_is_predicted_within_15_percent(name, side, dtype, decode):
    found = autoencoding_bytes(AutoencoderKL, PUBLISHED[name]["vae"], side=side, dtype=dtype, decode=decode)
    images = footprint_of(name, Lora(), "bf16", resolution=side)[1].images
    assert (images.decode_bytes if decode else images.encode_bytes) == pytest.approx(found, rel=0.15)


class TestPrediction:
    def test_weights_and_activations_grow_as_they_must(self):
        plain = peak("sd1", recompute=False)
        assert plain.train < peak("sd1", recompute=False, batch_size=2).train
        assert plain.train < peak("sd1", recompute=False, mixed_precision="no").train
        assert plain.train < peak("sd1", recompute=False, resolution=768).train
        assert plain.train < peak("sd1", recompute=False, train_text_encoder=True).train
        assert plain.train > peak("sd1", recompute=True).train
        assert plain.validation == peak("sd1", recompute=True).validation
        assert plain.validation < peak("sd1", recompute=True, resolution=768).validation
        assert plain.peak == max(plain.encode, plain.train, plain.validation)

    def test_an_autoencoder_in_float32_counts_as_such(self):
        half = base_of("xl", vae=PUBLISHED["xl"]["vae"] | {"force_upcast": False})
        options = {"recompute": True, "device": "cuda"}
        full = memory.predict(base_of("xl"), task_of(resolution=1024), **options)
        assert memory.predict(half, task_of(resolution=1024), **options).validation < full.validation

    def test_on_a_cpu_the_encoders_stay(self):
        options = {"recompute": True, "mixed_precision": "no"}
        encoders = peak("sd1", device="cpu", **options).train - peak("sd1", device="cuda", **options).train
        assert encoders == pytest.approx(4 * (123e6 + 83.7e6), rel=0.01)

    @pytest.mark.parametrize(
        "unet",
        [
            {},
            {"block_out_channels": 7},
            {"block_out_channels": [10**400] * 4},
            {"layers_per_block": 10**9},
            {"transformer_layers_per_block": [10**9] * 4},
            {"layers_per_block": 900, "transformer_layers_per_block": 900},
            {"down_block_types": None},
            {"attention_head_dim": "many"},
        ],
    )
    def test_a_configuration_that_makes_no_sense_predicts_nothing(self, unet):
        broken = base_of("sd1", unet=PUBLISHED["sd1"]["unet"] | unet if unet else {})
        assert memory.predict(broken, task_of(), recompute=False, device="cuda") is None
        assert "not predicted" in memory.describe(broken, task_of(), gpu(None))[0]


class TestDecision:
    def wants(self, asked, available, base=None):
        task = task_of(gradient_checkpointing=asked)
        return memory.decide(base or base_of("sd1"), task, gpu(available)).recompute

    def test_the_task_may_say_it(self):
        assert self.wants(True, 100 * GIB) and not self.wants(False, 1)

    def test_auto_does_it_where_the_training_would_not_fit(self):
        needed = peak("sd1", recompute=False).train
        assert not self.wants("auto", int(needed / 0.9) + 1)
        assert self.wants("auto", int(needed / 0.9) - 1)

    def test_auto_is_careful_where_nothing_is_known(self):
        assert self.wants("auto", None) and self.wants("auto", 100 * GIB, base_of("sd1", unet={}))
