"""Predictions for whole-model training against what torch holds in fact, for the published models' sizes."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.job import memory
from engine.job.memory import SPARE
from engine.training.optimizers.registry import OPTIMIZERS
from tests.support.fake_memory import whole_training_bytes
from tests.support.published_models import GIB, PUBLISHED, base_of, gpu, task_of

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
PARAMETERS = {"sd1": (859_520_964, 123_060_480), "sd2": (865_910_724, 340_387_840), "xl": (2_567_463_684, 817_720_320)}
"""Of the UNet and of the text encoders, as published."""
IMAGE_ENCODER = 83_653_863


def whole(precision="bf16", **args):
    return replace(task_of(precision, **args), training_type="full")


def peak(name, precision="bf16", *, recompute=True, device="cuda", num_processes=1, **args):
    task = whole(precision, **args)
    return memory.predict(base_of(name), task, recompute=recompute, device=device, num_processes=num_processes)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


CASES = [
    ("sd1", "bf16", 256, 4, 1, True, "cuda", False),
    slow("sd1", "no", 512, 1, 2, False, "cpu", True),
    slow("sd1", "no", 512, 1, 2, False, "cpu", False),
    slow("sd1", "bf16", 512, 4, 1, False, "cuda", False),
    slow("sd1", "bf16", 512, 4, 1, False, "cpu", True),
    slow("sd1", "no", 64, 16, 1, True, "cuda", False),
    slow("sd2", "bf16", 128, 4, 2, True, "cuda", False),
    slow("sd2", "bf16", 768, 2, 1, False, "cuda", True),
    slow("xl", "bf16", 256, 4, 1, True, "cuda", True),
    slow("xl", "no", 256, 4, 2, True, "cuda", False),
    slow("xl", "bf16", 1024, 1, 2, False, "cuda", True),
    slow("xl", "bf16", 1024, 1, 2, False, "cuda", False),
    slow("xl", "no", 1024, 1, 1, False, "cuda", False),
]


@pytest.mark.parametrize("name, precision, resolution, batch, micro_batches, with_texts, device, recompute", CASES)
def test_a_step_is_predicted_within_5_percent(
    name, precision, resolution, batch, micro_batches, with_texts, device, recompute
):
    """Activations, gradients of a micro-batch as they appear, and their sum."""
    found = peak(
        name,
        precision,
        recompute=recompute,
        device=device,
        batch_size=batch,
        resolution=resolution,
        gradient_accumulation_steps=micro_batches,
        train_text_encoder=with_texts,
    )
    width = 4 if precision == "no" else 2
    texts = [component for component in PUBLISHED[name] if component.startswith("text_encoder")]
    held = found.trained * (12 + (0 if precision == "no" else 2)) + 12 * micro_batches
    if device == "cpu":
        held += width * (IMAGE_ENCODER + (0 if with_texts else PARAMETERS[name][1]))
    step = whole_training_bytes(
        PUBLISHED[name],
        side=resolution // 8,
        batch=batch,
        dtype=DTYPES[precision],
        recompute=recompute,
        micro_batches=micro_batches,
        texts=texts if with_texts else (),
        is_cuda=device == "cuda",
    )
    assert found.train - held == pytest.approx(step, rel=0.05)


class TestValues:
    @pytest.mark.parametrize("name", PARAMETERS)
    def test_all_parameters_are_trained_and_none_is_held_frozen_too(self, name):
        denoiser, texts = PARAMETERS[name]
        assert peak(name).trained == denoiser
        assert peak(name, train_text_encoder=True).trained == denoiser + texts
        lora = memory.predict(base_of(name), task_of(), recompute=True, device="cuda")
        assert peak(name).parameters == lora.parameters

    @pytest.mark.parametrize("precision, copy", [("no", 0), ("bf16", 2), ("fp16", 2)])
    def test_between_steps_there_are_masters_moments_and_a_working_copy(self, precision, copy):
        """And the average with `ema_decay`. The frozen encoders are there too, since they are at work."""
        plain, averaged = (peak("sd1", precision, ema_decay=decay) for decay in (None, 0.999))
        denoiser, texts = PARAMETERS["sd1"]
        encoders = (copy or 4) * (texts + IMAGE_ENCODER)
        images = plain.encode - denoiser * (12 + copy) - encoders
        assert 0 < images < GIB
        assert (plain.optimizer, plain.average, averaged.average) == (8 * denoiser, 0, 4 * denoiser)
        for phase in ("encode", "train", "validation"):
            assert getattr(averaged, phase) - getattr(plain, phase) == 4 * denoiser

    def test_images_without_the_training_take_the_weights_as_they_were_read(self):
        """The trained weights stay in memory meanwhile."""
        found, lora = peak("xl"), memory.predict(base_of("xl"), task_of(), recompute=True, device="cuda")
        drawing = lora.validation - 2 * PARAMETERS["xl"][0] - 14 * lora.trained
        assert found.validation == drawing + PARAMETERS["xl"][0] * (12 + 2 + 2)

    def test_processes_share_the_slots_and_the_sums(self):
        denoiser = PARAMETERS["sd1"][0]
        one, four, many = (peak("sd1", num_processes=n, ema_decay=0.99) for n in (1, 4, 1000))
        assert one.encode - four.encode == pytest.approx(denoiser * 12 * 3 / 4, rel=1e-6)
        # Each still has the masters, the working copy and its own gradient.
        assert many.train == pytest.approx(denoiser * (4 + 2 + 2), rel=0.1)
        lora = [
            memory.predict(base_of("sd1"), task_of(), recompute=True, device="cuda", num_processes=n) for n in (1, 4)
        ]
        assert lora[0] == lora[1], "each process has all of a LoRA"

    def test_a_second_micro_batch_needs_its_activations_beside_the_sums(self):
        one, two = (peak("sd1", gradient_accumulation_steps=n, recompute=False).train for n in (1, 2))
        assert 1.05 * one < two < one + 4 * PARAMETERS["sd1"][0]


def test_the_optimizers_state_is_that_of_each_tensor():
    """The prediction takes the two vectors of a norm for one."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(PUBLISHED["sd1"]["unet"])
    for name, row in OPTIMIZERS.items():
        exact = sum(slot.num_bytes for one in unet.parameters() for slot in row.layout(tuple(one.shape)).values())
        assert peak("sd1", optimizer=name).optimizer == pytest.approx(exact, rel=2e-3)


def test_the_average_of_a_lora_is_counted():
    plain, averaged = (
        memory.predict(base_of("sd1"), task_of(ema_decay=decay), recompute=True, device="cuda")
        for decay in (None, 0.999)
    )
    for phase in ("encode", "train", "validation"):
        assert getattr(averaged, phase) - getattr(plain, phase) == 4 * plain.trained


def test_auto_decides_by_the_whole_models_prediction():
    needed = peak("sd1", recompute=False, batch_size=8).train
    for available, expected in ((needed / SPARE + 1, False), (needed / SPARE - 1, True)):
        task = whole(batch_size=8)
        found = memory.decide(base_of("sd1"), task, gpu(int(available))).recompute
        assert found is expected
