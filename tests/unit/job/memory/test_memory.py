"""Predictions of memory against what torch holds in fact, for the published models' sizes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.core.errors import DeviceMemoryError
from engine.job import memory
from engine.job.memory.device_errors import memory_advice
from engine.models import registry
from engine.models.parts.tape import Tape
from engine.models.spec import Workload
from engine.task.task import Dataset, Lora, Model, Task, TrainArgs
from engine.training.methods.lora.targets import is_target
from tests.support.fake_memory import autoencoding_bytes, fake_adapted, training_bytes

GIB = 2**30
SKELETONS = Path(memory.__file__).parents[2] / "models" / "single_file"
PUBLISHED = {name: json.loads((SKELETONS / f"{name}.json").read_text()) for name in ("sd1", "sd2", "xl")}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
DROPOUT = Lora(rank=8, dropout=0.1)
CONVOLUTIONS = Lora(rank=8, target_modules=("conv1", "conv2", "to_q", "proj_in", "ff.net.0.proj", "conv_in"))


def base_of(name, **changes):
    """A base model of a published size: its configurations alone."""
    configs = PUBLISHED[name] | changes
    family = registry.FAMILIES[PIPELINES[name]]
    return SimpleNamespace(config=configs.__getitem__, family=family, single_file="whole")


def task_of(mixed_precision="bf16", lora=None, **train_args):
    return Task(
        model=Model(name="m"),
        dataset=Dataset(name="d"),
        lora=lora or Lora(rank=4),
        train_args=TrainArgs(**({"batch_size": 1} | train_args)),
        mixed_precision=mixed_precision,
    )


def footprint_of(name, lora, precision, *, batch=1, resolution=512, is_cuda=True):
    """A published model's footprint by its family: the tapes, and the image encoder's."""
    family, width = registry.FAMILIES[PIPELINES[name]], 4 if precision == "no" else 2

    def tape(targets):
        norm_width = 4 if is_cuda else width
        return Tape(
            is_adapted=is_target(targets),
            rank=lora.rank,
            width=width,
            norm_width=norm_width,
            is_dropping=lora.dropout > 0,
        )

    workload = Workload(
        batch=batch,
        resolution=resolution,
        caption_chunks=1,
        value_bytes=width,
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

    def test_of_the_autoencoder(self, name):
        config = PUBLISHED[name]["vae"]
        with torch.device("meta"):
            vae = AutoencoderKL(**{key: value for key, value in config.items() if not key.startswith("_")})
        found = footprint_of(name, Lora(), "no")[1]
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


CASES = [
    ("sd1", 64, 1, "bf16", Lora(rank=4), True),
    ("sd1", 48, 3, "no", CONVOLUTIONS, True),
    ("sd1", 32, 2, "bf16", DROPOUT, False),
    pytest.param("sd1", 64, 4, "bf16", CONVOLUTIONS, True, marks=pytest.mark.slow),
    pytest.param("xl", 128, 1, "bf16", Lora(rank=8), True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, side, batch, precision, lora, is_cuda", CASES)
@pytest.mark.parametrize("recompute", [False, True])
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
    images = footprint_of(name, Lora(), "bf16", resolution=side)[1]
    assert (images.decode_bytes if decode else images.encode_bytes) == pytest.approx(found, rel=0.15)


def peak(name, *, recompute, device="cuda", **options):
    return memory.predict(base_of(name), task_of(**options), recompute=recompute, device=device)


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
        assert "not predicted" in memory.describe(broken, task_of(), device="cuda", available=None)[0]


class TestDecision:
    def wants(self, asked, available, base=None):
        task = task_of(gradient_checkpointing=asked)
        return memory.wants_recompute(base or base_of("sd1"), task, device="cuda", available=available)

    def test_the_task_may_say_it(self):
        assert self.wants(True, 100 * GIB) and not self.wants(False, 1)

    def test_auto_does_it_where_the_training_would_not_fit(self):
        needed = peak("sd1", recompute=False).train
        assert not self.wants("auto", int(needed / 0.9) + 1)
        assert self.wants("auto", int(needed / 0.9) - 1)

    def test_auto_is_careful_where_nothing_is_known(self):
        assert self.wants("auto", None) and self.wants("auto", 100 * GIB, base_of("sd1", unet={}))


class TestWords:
    def test_with_unknown_memory_both_are_said(self):
        lines = memory.describe(base_of("sd1"), task_of(), device="cuda", available=None)
        plain, saving = (peak("sd1", recompute=recompute).train for recompute in (False, True))
        assert f"{memory.gib(plain)} training" in lines[0] and "0.5 GiB for CUDA" in lines[0]
        assert memory.gib(int(plain / 0.9)) in lines[0] and memory.gib(saving) in lines[1]

    def test_the_decision_and_why(self):
        (line,) = memory.describe(base_of("sd1"), task_of(), device="cuda", available=80 * GIB)
        assert line.endswith("; without gradient checkpointing (auto: 80.0 GiB available)")
        (line,) = memory.describe(
            base_of("sd1"), task_of(gradient_checkpointing=True), device="cuda", available=80 * GIB
        )
        assert line.endswith("; with gradient checkpointing")

    def test_what_does_not_fit_is_said_with_what_would(self):
        task = task_of("no", batch_size=8, gradient_checkpointing=False)
        lines = memory.describe(base_of("sd1"), task, device="cuda", available=10 * GIB)
        assert lines[-1].startswith("note: that is more than the 10.0 GiB available; what would fit: ")
        assert "gradient_checkpointing true (" in lines[-1]

    def test_what_is_proposed_fits_and_trains_as_many_images(self):
        task = task_of("no", batch_size=8, gradient_accumulation_steps=3)
        found = memory.fitting(base_of("xl"), task, device="cuda", available=24 * GIB)
        assert found and all(float(words.split("(")[1].split()[0]) <= 24 * 0.9 for words in found)
        (batches,) = (words for words in found if words.startswith("batch_size "))
        size, steps = (int(word) for word in batches.split() if word.isdigit())
        assert size * steps == 8 * 3
        assert memory.fitting(base_of("xl"), task, device="cuda", available=GIB) == []

    def test_what_is_there_already_is_not_proposed(self):
        task = task_of("bf16", resolution=256, gradient_checkpointing=True)
        assert memory.fitting(base_of("sd1"), task, device="cuda", available=80 * GIB) == []
        args = replace(task.train_args, gradient_checkpointing=False)
        found = memory.fitting(base_of("sd1"), replace(task, train_args=args), device="cuda", available=80 * GIB)
        assert [words.split(" (")[0] for words in found] == ["gradient_checkpointing true"]


class TestAdvice:
    """What a job that ran out of memory says."""

    JOB = SimpleNamespace(base=base_of("sd1"), task=task_of("no", batch_size=8, resolution=768), parent=None)

    def test_it_is_what_would_fit(self):
        said = memory_advice(self.JOB, torch.device("cpu"), 8 * GIB)
        fits = memory.fitting(self.JOB.base, self.JOB.task, device="cpu", available=8 * GIB)
        assert len(fits) > 1 and said.startswith("out of memory on this machine, of which 8.0 GiB were free; ")
        assert all(words in said for words in fits)

    def test_where_nothing_is_known_it_is_what_takes_less(self):
        said = memory_advice(self.JOB, torch.device("cpu"), None)
        assert said.startswith('out of memory on this machine; try mixed_precision "bf16", or batch_size 1 with ')
        assert "gradient_accumulation_steps 8 (as many images a step)" in said

    def test_what_cannot_be_less_is_not_proposed(self):
        least = SimpleNamespace(base=base_of("sd1"), task=task_of("bf16", Lora(rank=1), resolution=64), parent=None)
        said = memory_advice(least, torch.device("cpu"), None)
        assert said == "out of memory on this machine; try a machine with more memory"

    def test_where_nothing_would_fit_it_says_so(self):
        assert "no change of the task would fit" in memory_advice(self.JOB, torch.device("cpu"), GIB)

    def test_a_checkpoint_can_be_continued_by_few_of_these(self):
        def advice(continues):
            return memory.advise(self.JOB.base, self.JOB.task, device="cpu", available=8 * GIB, continues=continues)

        assert "another gradient_checkpointing alone" in advice(True) and "checkpoint" not in advice(False)


def prediction(base, task, available):
    recompute = memory.wants_recompute(base, task, device="cpu", available=available)
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


class TestRefusal:
    """Of what would be ended by the system's out-of-memory killer, without a line."""

    @pytest.mark.parametrize("precision, lora, args", EXTREMES)
    def test_what_is_far_too_large_is_refused_and_the_advice_fits(self, precision, lora, args):
        base, task, available = base_of("sd1"), task_of(precision, lora, **args), 20 * GIB
        with pytest.raises(DeviceMemoryError, match=r"20\.0 GiB.*what should fit"):
            memory.require_enough(base, task, device="cpu", available=available, most=available, continues=False)
        found = memory.fitting(base, task, device="cpu", available=available)
        assert found
        for advice in found:
            assert prediction(base, changed(task, advice), available).peak <= memory.SPARE * available
            assert advice.count("gradient_accumulation_steps") <= 1, "of each key the value to write"

    def test_what_might_fit_is_not(self):
        base, task = base_of("sd1"), task_of("no", gradient_checkpointing=True)
        peak = prediction(base, task, 20 * GIB).peak
        for most in (None, peak * 2, peak, int(peak / 1.49)):
            memory.require_enough(base, task, device="cpu", available=most, most=most, continues=False)
        with pytest.raises(DeviceMemoryError):
            memory.require_enough(base, task, device="cpu", available=1, most=int(peak / 1.51), continues=False)

    def test_what_cannot_be_predicted_is_not(self):
        memory.require_enough(base_of("sd1", unet={}), task_of(), device="cpu", available=1, most=1, continues=False)

    def test_what_the_files_do_not_hold_is_left_to_be_found_by_loading(self, tmp_path):
        """A configuration that claims a terabyte is no reason to blame the machine."""
        base, claims = base_of("sd1"), {"device": "cpu", "available": 1, "most": 1, "continues": False}
        base.single_file, base.folder = None, tmp_path
        (tmp_path / "unet").mkdir()
        with pytest.raises(DeviceMemoryError):  # not downloaded yet
            memory.require_enough(base, task_of(), **claims)
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 1000)
        memory.require_enough(base, task_of(), **claims)

    def test_the_micro_batches_of_a_step_are_counted(self):
        few, many = (peak("sd1", recompute=True, gradient_accumulation_steps=n).train for n in (1, 10**9 + 1))
        assert many - few == 12 * 10**9


class TestAvailable:
    def machine(self, root, **files):
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("-", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return memory.available_bytes(root)

    MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"

    def test_of_the_machine(self, tmp_path):
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO) == (8000000 << 10) - memory.PROGRAM_BYTES

    @pytest.mark.parametrize("limit, expected", [("max\n", 8000000 << 10), (f"{3 * GIB}\n", 2 * GIB)])
    def test_of_the_control_group(self, tmp_path, limit, expected):
        group = {
            "sys__fs__cgroup__memory-max": limit,
            "sys__fs__cgroup__memory-current": f"{3 * GIB // 2}\n",
            "sys__fs__cgroup__memory-stat": f"anon {GIB}\nfile {GIB // 2}\ninactive_file {GIB // 2}\n",
        }
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO, **group) == expected - memory.PROGRAM_BYTES

    def test_of_an_old_control_group(self, tmp_path):
        group = {
            "sys__fs__cgroup__memory__memory-limit_in_bytes": str(3 * GIB),
            "sys__fs__cgroup__memory__memory-usage_in_bytes": str(4 * GIB),
            "sys__fs__cgroup__memory__memory-stat": "total_inactive_file 4096\n",
        }
        assert self.machine(tmp_path, proc__meminfo=self.MEMINFO, **group) == 0

    def test_hidden(self, tmp_path):
        assert self.machine(tmp_path) is None and memory.most_bytes(tmp_path) is None

    def test_the_most_that_could_be_had_is_more(self, tmp_path):
        self.machine(tmp_path, proc__meminfo=f"{self.MEMINFO}SwapFree: 1000 kB\n")
        assert memory.most_bytes(tmp_path) == 8001000 << 10

    def test_of_this_machine(self):
        assert memory.available_bytes() > 0
