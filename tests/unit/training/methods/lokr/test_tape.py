"""Predictions of memory against what torch holds in fact, for Stable Diffusion 1's sizes."""

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.models import registry
from engine.models.spec import Workload
from engine.task.task import Lora
from engine.training.methods.lokr.spec import LOKR
from engine.training.optimizers.layout import as_matrix
from tests.support.abouts import task_of
from tests.support.fake_memory import fake_with_lokr, training_bytes
from tests.support.published_models import PIPELINES, PUBLISHED

CONVOLUTIONS = Lora(rank=4, target_modules=("conv1", "conv2", "to_q", "proj_in", "ff.net.0.proj", "conv_in"))


def tape_of(lora, precision, *, batch=1, side=64, is_cuda=True):
    family, width = registry.FAMILIES[PIPELINES["sd1"]], 4 if precision == torch.float32 else 2
    denoiser, texts = LOKR.tapes(family, task_of(training_type="lokr", lora=lora), width, 4 if is_cuda else width)
    workload = Workload(
        batch=batch,
        resolution=8 * side,
        caption_tokens=75,
        value_bytes=width,
        is_float16=False,
        trains_text_encoders=False,
        denoiser=denoiser,
        text_encoders=texts,
    )
    family.footprint(PUBLISHED["sd1"].__getitem__, workload)
    assert texts.trained == 0
    return denoiser


@pytest.mark.parametrize(
    "lora",
    [
        CONVOLUTIONS,
        pytest.param(Lora(rank=8), marks=pytest.mark.slow),
        pytest.param(Lora(rank=64, factor=4), marks=pytest.mark.slow),
    ],
)
def test_the_factors_of_the_denoisers_layers(lora):
    _, training, _ = fake_with_lokr(UNet2DConditionModel, PUBLISHED["sd1"]["unet"], torch.float32, lora)
    tape = tape_of(lora, torch.float32)
    assert tape.trained == sum(parameter.numel() for parameter in training.parameters.values())
    assert tape.trained_shapes == Counter(as_matrix(tuple(one.shape)) for one in training.parameters.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "side, batch, dtype, lora, is_cuda",
    [
        (64, 1, torch.bfloat16, Lora(rank=8), True),
        (48, 3, torch.float32, CONVOLUTIONS, True),
        (64, 4, torch.bfloat16, CONVOLUTIONS, True),
        (32, 2, torch.bfloat16, Lora(rank=64, dropout=0.1), False),
        (32, 2, torch.float32, Lora(rank=8, factor=4), True),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_predicted_within_15_percent(side, batch, dtype, lora, is_cuda, recompute):
    tape = tape_of(lora, dtype, batch=batch, side=side, is_cuda=is_cuda)
    found = training_bytes(
        UNet2DConditionModel,
        PUBLISHED["sd1"]["unet"],
        side=side,
        batch=batch,
        dtype=dtype,
        recompute=recompute,
        options=lora,
        is_cuda=is_cuda,
        adapt=fake_with_lokr,
    )
    assert tape.peak(recompute=recompute) == pytest.approx(found - 4 * tape.trained, rel=0.15)
