"""Tasks that need more memory than there is: refused, with changes that fit."""

import json
from dataclasses import replace

import pytest

from engine.core.errors import DeviceMemoryError
from engine.job import memory
from engine.models.components.place import Place
from engine.task.task import Lora, Prompt
from tests.support.published_models import GIB, base_of, cpu, gpu, peak, task_of


def prediction(base, task, available):
    recompute = memory.decide(base, task, cpu(available)).recompute
    return memory.predict(base, task, recompute=recompute, device="cpu")


def changed(task, advice):
    """The task with what a piece of advice says."""
    for change in advice.split(" (")[0].replace(" with ", " and ").split(" and "):
        key, value = change.split()
        value = json.loads(value)
        if key == "mixed_precision":
            task = replace(task, mixed_precision=value)
        elif key == "lora.rank":
            task = replace(task, lora=replace(task.lora, rank=value))
        elif key == "model.quantization":
            task = replace(task, model=replace(task.model, quantization=value))
        else:
            task = replace(task, train_args=replace(task.train_args, **{key: value}))
    return task


EXTREMES = [
    ("no", Lora(rank=10**6), {}),
    ("no", Lora(), {"batch_size": 10**7}),
    ("no", Lora(), {"batch_size": 7, "gradient_checkpointing": False, "resolution": 1024}),
    ("bf16", Lora(), {"gradient_accumulation_steps": 10**10}),
    ("bf16", Lora(), {"gradient_accumulation_steps": 10**18}),
    ("bf16", Lora(), {"batch_size": 10**15}),
    ("bf16", Lora(rank=10**15), {}),
    ("no", Lora(rank=10**4), {"batch_size": 10**4, "resolution": 4096, "train_text_encoder": True}),
]


@pytest.mark.parametrize("free, quantization", [(24, "int8"), (12, "nf4")])
def test_fewer_bits_bring_a_large_model_onto_a_small_card(free, quantization):
    task = task_of("bf16", lora=Lora(rank=16), gradient_checkpointing=True, offload=False, resolution=1024)
    found = memory.fitting(base_of("flux1"), task, gpu(free * GIB))
    assert found[0].startswith(f'model.quantization "{quantization}" (')
    whole = replace(task, training_type="full")
    assert "quantization" not in str(memory.fitting(base_of("flux1"), whole, gpu(150 * GIB)))


def test_a_validation_image_that_does_not_fit_may_be_smaller():
    base, plain = base_of("sd1"), task_of("bf16", gradient_checkpointing=True)
    now = prediction(base, plain, None)
    rows = ("a", Prompt(prompt="b", width=4096, height=4096))
    large = replace(plain, validation=replace(plain.validation, prompts=rows))
    found = prediction(base, large, None)
    assert (found.encode, found.train) == (now.encode, now.train)
    decoding = 3 * 256 * 2 * (4096**2 - 512**2)  # in bf16; see footprints/vae.py
    assert found.validation - now.validation == decoding
    fits = memory.fitting(base, large, cpu(int(now.peak / memory.SPARE) + 1))
    assert fits[0].startswith("validation.prompts of the size that is trained (")


class TestWholeModel:
    """What would fit where all weights are trained."""

    def task(self, precision="no", **args):
        return replace(task_of(precision, **args), training_type="full")

    def test_each_change_that_suffices_is_proposed_and_another_method_last(self):
        task = self.task(ema_decay=0.99, batch_size=4, resolution=768)
        base, now = base_of("sd1"), prediction(base_of("sd1"), self.task(batch_size=4, resolution=768), None).peak
        found = memory.fitting(base, task, cpu(int(now / memory.SPARE) + 1))
        proposed = [words.split(" (")[0] for words in found]
        assert "ema_decay null" in proposed and proposed[-1] == 'training_type "lora"'

    def test_without_text_encoders(self):
        task = self.task("bf16", train_text_encoder=True, gradient_checkpointing=True, resolution=64)
        base, less = base_of("xl"), self.task("bf16", gradient_checkpointing=True, resolution=64)
        available = int(prediction(base, less, None).peak / memory.SPARE) + 1
        found = memory.fitting(base, task, cpu(available))
        expected = ['optimizer "adamw_8bit"', "train_text_encoder false", 'training_type "lora"']
        assert [words.split(" (")[0] for words in found] == expected

    def test_a_lora_is_the_only_way_into_a_small_card(self):
        task = self.task("bf16", batch_size=4)
        found = memory.fitting(base_of("xl"), task, gpu(16 * GIB))
        assert [words.split(" (")[0] for words in found] == ['training_type "lora"']
        with pytest.raises(DeviceMemoryError, match='what should fit: training_type "lora"'):
            memory.require_enough(base_of("xl"), task, gpu(16 * GIB), most=16 * GIB, continues=False)

    def test_more_processes_may_fit(self):
        task = self.task("bf16", gradient_accumulation_steps=8)
        machine, room = gpu(40 * GIB), {"most": 28 * GIB, "continues": False}
        with pytest.raises(DeviceMemoryError):
            memory.require_enough(base_of("xl"), task, machine, **room)
        memory.require_enough(base_of("xl"), task, replace(machine, num_processes=8), **room)


class TestRefusal:
    """Of what would be ended by the system's out-of-memory killer, without a line."""

    @pytest.mark.parametrize("precision, lora, args", EXTREMES)
    def test_what_is_far_too_large_is_refused_and_the_advice_fits(self, precision, lora, args):
        base, task, available = base_of("sd1"), task_of(precision, lora, **args), 20 * GIB
        with pytest.raises(DeviceMemoryError, match=r"20\.0 GiB.*what should fit"):
            memory.require_enough(base, task, cpu(available), most=available, continues=False)
        found = memory.fitting(base, task, cpu(available))
        assert found
        for advice in found:
            assert prediction(base, changed(task, advice), available).peak <= memory.SPARE * available
            assert advice.count("gradient_accumulation_steps") <= 1, "of each key the value to write"

    def test_what_might_fit_is_not(self):
        base, task = base_of("sd1"), task_of("no", gradient_checkpointing=True)
        peak = prediction(base, task, 20 * GIB).peak
        for most in (None, peak * 2, peak, int(peak / 1.49)):
            memory.require_enough(base, task, cpu(most), most=most, continues=False)
        with pytest.raises(DeviceMemoryError):
            memory.require_enough(base, task, cpu(1), most=int(peak / 1.51), continues=False)

    def test_what_cannot_be_predicted_is_not(self):
        memory.require_enough(base_of("sd1", unet={}), task_of(), cpu(1), most=1, continues=False)

    def test_what_the_files_do_not_hold_is_left_to_be_found_by_loading(self, tmp_path):
        """A configuration that claims a terabyte is no reason to blame the machine."""
        base, machine = base_of("sd1"), cpu(1)
        base.single_file, base.variants = None, {}
        base.place = lambda component: Place(component=component, folder=tmp_path / component)
        (tmp_path / "unet").mkdir()
        with pytest.raises(DeviceMemoryError):  # not downloaded yet
            memory.require_enough(base, task_of(), machine, most=1, continues=False)
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 1000)
        memory.require_enough(base, task_of(), machine, most=1, continues=False)

    def test_the_micro_batches_of_a_step_are_counted(self):
        few, many = (peak("sd1", recompute=True, gradient_accumulation_steps=n).train for n in (1, 10**9 + 1))
        assert many - few == 12 * 10**9
