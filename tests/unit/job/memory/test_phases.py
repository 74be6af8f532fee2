"""The memory of each phase, with text encoders kept or freed: what FLUX.1 and Stable Diffusion 3.5 need."""

from dataclasses import replace

import pytest

from engine.job import memory
from engine.job.memory import Offload
from engine.job.memory.decisions import chosen
from tests.support.published_models import GIB, base_of, cpu, gpu, peak, task_of

T5 = 4_762_310_656
CLIP_L, VAE = 123_060_480, 83_819_683
FLUX = 11_901_408_320


def flux(device="cuda", *, apart, base=None, offload=Offload.NOTHING, **args):
    task = task_of(resolution=1024, **args)
    found = memory.predict(base or base_of("flux1"), task, recompute=True, device=device, apart=apart, offload=offload)
    assert found is not None
    return found


def parts_apart(base, device="cuda", **limits):
    return memory.decide(base_of(base), task_of(resolution=1024), memory.Machine(device=device, **limits)).apart


class TestOffloadedBlocks:
    LARGEST = 2 * 339_831_296
    """Bytes of a joint block."""

    def test_two_of_them_are_on_the_device_and_all_in_main_memory(self):
        whole, inputs, moved = (flux(apart=True, offload=offload) for offload in Offload)
        blocks = moved.main.load - whole.main.load
        assert 0.97 * 2 * FLUX < blocks < 2 * FLUX
        assert inputs.train - moved.train == whole.load - moved.load == blocks - 2 * self.LARGEST

    def test_inputs_of_two_are_on_the_device_and_all_in_main_memory(self):
        task = task_of(resolution=640, num_frames=81)
        whole, inputs, moved = (
            memory.predict(base_of("wan-14b"), task, recompute=True, device="cuda", offload=offload)
            for offload in Offload
        )
        one = 2 * 5120 * 21 * 40**2
        assert whole.train - inputs.train == 38 * one
        assert inputs.main.train - whole.main.train == moved.main.train - moved.main.load == 40 * one
        assert (inputs.load, inputs.validation) == (whole.load, whole.validation)

    def test_on_a_cpu_two_blocks_are_in_memory_twice(self):
        whole, inputs, moved = (flux("cpu", apart=True, offload=offload) for offload in Offload)
        assert whole.train == inputs.train == moved.train - 2 * self.LARGEST

    def test_quantised_ones_are_smaller(self):
        task = task_of(resolution=1024)
        task = replace(task, model=replace(task.model, quantization="nf4"))
        options = {"recompute": True, "device": "cuda", "apart": True, "offload": Offload.BLOCKS}
        found = memory.predict(base_of("flux1"), task, **options)
        assert found.main.load < 0.3 * flux(apart=True, offload=Offload.BLOCKS).main.load

    def test_it_is_done_only_as_far_as_the_task_does_not_fit_otherwise(self):
        assert offload("wan-14b", 80, num_frames=81, resolution=640) is Offload.NOTHING
        assert offload("wan-14b", 48, num_frames=81, resolution=640) is Offload.INPUTS
        assert offload("wan-14b", 40, num_frames=81, resolution=640) is Offload.BLOCKS
        assert offload("flux1", 24) is Offload.BLOCKS and offload("flux1", 32) is Offload.NOTHING

    def test_the_task_may_say_it(self):
        assert offload("flux1", 80, offload=True) is Offload.BLOCKS
        assert offload("flux1", 24, offload=False) is Offload.NOTHING
        assert memory.decide(base_of("flux1"), task_of(offload=True), cpu(999 * GIB)).recompute

    def test_where_it_cannot_be_or_nothing_is_known_it_is_not_done(self):
        assert not offload("flux1", 24, gradient_checkpointing=False), "autograd would keep the blocks"
        assert not offload("flux1", None)
        assert not memory.decide(base_of("flux1"), task_of(), cpu(GIB)).offload
        assert not offload("xl", 4), "a UNet's blocks are not computed again as a whole"

    def test_blocks_that_are_trained_stay_on_the_device(self):
        args = {"resolution": 640, "num_frames": 81, "batch_size": 4}
        assert offload("wan-1b", 48, training_type="full", **args) is Offload.INPUTS


def offload(base, free, training_type="lora", **args):
    task = replace(task_of(**({"resolution": 1024} | args)), training_type=training_type)
    return memory.decide(base_of(base), task, gpu(None if free is None else free * GIB)).offload


class TestPhases:
    def test_weights_are_where_they_are_used(self):
        """The VAE is in float32, the rest in 16 bits."""
        kept = flux(apart=False)
        encoders = 2 * (T5 + CLIP_L) + 4 * VAE
        assert kept.load == pytest.approx(2 * FLUX, rel=0.01)
        assert kept.main.train == kept.main.encode == encoders
        assert kept.encode - 2 * FLUX - encoders < 4 * GIB, "nothing else is of their size"

    def test_a_freed_text_encoder_is_nowhere_while_training(self):
        kept, freed = flux(apart=False), flux(apart=True)
        assert kept.train == freed.train, "it was in main memory before"
        assert kept.main.train - freed.main.train == 2 * T5
        assert kept.validation - freed.validation == pytest.approx(2 * T5)
        assert freed.apart and not kept.apart

    def test_on_a_cpu_both_are_one_memory(self):
        kept, freed = flux("cpu", apart=False), flux("cpu", apart=True)
        assert kept.main.train == kept.train and freed.main.peak == freed.peak
        assert kept.train - freed.train == kept.load - freed.load == 2 * T5

    def test_encoding_needs_the_larger_of_text_encoders_and_denoiser(self):
        freed = flux(apart=True)
        assert 2 * max(T5, FLUX) < freed.encode < 2 * (T5 + FLUX)

    def test_a_text_encoder_that_is_trained_stays(self):
        plain, trained = (flux(apart=True, train_text_encoder=trains) for trains in (False, True))
        assert trained.load - plain.load == pytest.approx(2 * CLIP_L, rel=0.1)
        assert plain.main.train - trained.main.train == 2 * CLIP_L

    def test_a_model_without_the_optional_text_encoder_takes_less(self):
        full, without = (
            memory.predict(base, task_of(), recompute=True, device="cuda", apart=True)
            for base in (base_of("sd35-large"), base_of("sd35-large", text_encoder_3={}))
        )
        assert full.parameters - without.parameters == T5
        assert full.apart and not without.apart, "the other text encoders can be trained"

    def test_a_half_precision_that_keeps_weights_in_float32(self):
        """T5's last layers."""
        half, brain = (flux(apart=False, mixed_precision=precision).main.train for precision in ("fp16", "bf16"))
        assert half - brain == 2 * 24 * 10240 * 4096


class TestDecision:
    def test_encoders_are_freed_where_they_do_not_fit_beside_the_denoiser(self):
        needed = flux(apart=False).peak
        assert not parts_apart("flux1", available=int(needed / 0.9) + 1)
        assert parts_apart("flux1", available=int(needed / 0.9) - 1)

    def test_where_main_memory_is_too_small_for_them(self):
        assert parts_apart("flux1", available=80 * GIB, main_available=8 * GIB)
        assert not parts_apart("flux1", available=80 * GIB, main_available=16 * GIB)

    def test_a_cpu_has_one_memory(self):
        kept, freed = (flux("cpu", apart=apart).train for apart in (False, True))
        assert parts_apart("flux1", "cpu", available=int((kept + freed) / 2 / 0.9), main_available=GIB)
        assert not parts_apart("flux1", "cpu", available=200 * GIB, main_available=GIB)

    def test_nothing_is_freed_where_nothing_is_known(self):
        assert not parts_apart("flux1", available=None)

    @pytest.mark.parametrize("name", ["sd1", "xl"])
    def test_text_encoders_that_can_be_trained_are_kept(self, name):
        assert not parts_apart(name, available=GIB)
        task = task_of()
        assert memory.predict(base_of(name), task, recompute=True, device="cuda", apart=True) == peak(
            name, recompute=True
        )

    def test_freeing_comes_before_gradient_checkpointing(self):
        """It costs less time."""
        base, task = base_of("sd35-large"), task_of(resolution=512, batch_size=2)
        freed = memory.predict(base, task, recompute=False, device="cpu", apart=True)
        found = chosen(base, task, cpu(int(freed.peak / 0.9) + 1))
        assert found == freed


def keeps_encoders(base, device="cuda", *, available, **args):
    machine = memory.Machine(device=device, available=available)
    return memory.keeps_encoders(base_of(base), task_of(**args), machine)


class TestEncodersAtFirst:
    def test_they_stay_where_they_fit_beside_the_denoiser_while_it_trains(self):
        found = peak("xl", recompute=False, resolution=1024, batch_size=4)
        needed = found.train + found.main.train
        assert found.peak < needed, "the largest phase"
        for free, stays in ((needed / 0.9 + 1, True), (needed / 0.9 - 1, False)):
            args = {"resolution": 1024, "batch_size": 4, "gradient_checkpointing": False}
            assert keeps_encoders("xl", available=int(free), **args) == stays

    def test_not_where_memory_is_short_or_unknown(self):
        assert keeps_encoders("flux1", available=80 * GIB)
        assert not keeps_encoders("flux1", available=80 * GIB, offload=True)
        assert not keeps_encoders("flux1", available=30 * GIB), "text encoders are freed"
        assert not keeps_encoders("sd1", available=None)

    def test_a_cpu_has_them_in_the_same_memory_unless_they_are_freed(self):
        assert keeps_encoders("sd1", "cpu", available=GIB) and keeps_encoders("sd1", "cpu", available=None)
        assert not keeps_encoders("flux1", "cpu", available=30 * GIB)


class TestWords:
    def lines(self, available, main_available=64 * GIB, batch_size=1):
        return memory.describe(
            base_of("flux1"),
            task_of(resolution=1024, gradient_checkpointing=True, batch_size=batch_size),
            memory.Machine(device="cuda", available=available, main_available=main_available),
        )

    def test_both_memories_and_how_encoders_are_held(self):
        kept = flux(apart=False, batch_size=8)
        device, main, held = self.lines(int(kept.peak / 0.9) + 1, batch_size=8)
        assert f"{memory.gib(kept.encode)} encoding" in device and f"{memory.gib(kept.main.train)} training" in main
        assert held.strip() == "the text encoders stay in main memory while it trains"

    def test_encoders_that_stay_on_the_device_at_first_are_said(self):
        *_, held = self.lines(80 * GIB)
        both = memory.gib(flux(apart=False).train + 2 * (T5 + CLIP_L) + 4 * VAE)
        assert held.strip() == f"the encoders leave the GPU after the first steps, until then {both} training"

    def test_freed_encoders_are_said(self):
        device, _, held = self.lines(30 * GIB)
        assert f"{memory.gib(flux(apart=True).encode)} encoding" in device
        assert held.strip() == "text encoders that are not needed in training are freed before the denoiser is loaded"

    def test_with_unknown_memory_the_limit_is_said(self):
        kept = flux(apart=False)
        limit = max(kept.encode, kept.validation) / 0.9
        *_, freed, offloaded = self.lines(None)
        assert f"(if less than {memory.gib(int(limit))} is free)" in freed
        least = flux(apart=True, offload=Offload.BLOCKS)
        assert f"(if less than {memory.gib(int(flux(apart=True).peak / 0.9))} is free)" in offloaded
        assert f"{memory.gib(least.train)} training" in offloaded and offloaded.endswith(memory.gib(least.main.peak))

    def test_inputs_are_offloaded_first_where_that_makes_the_peak_smaller(self):
        task = task_of(resolution=640, num_frames=81)
        *_, inputs, blocks = memory.describe(base_of("wan-14b"), task, gpu(None))
        whole, less, least = (
            memory.predict(base_of("wan-14b"), task, recompute=True, device="cuda", apart=True, offload=offload)
            for offload in Offload
        )
        assert inputs.strip().startswith("with the inputs of the denoiser's blocks in main memory")
        for line, before, then in ((inputs, whole, less), (blocks, less, least)):
            assert f"(if less than {memory.gib(int(before.peak / 0.9))} is free)" in line
            assert f"{memory.gib(then.train)} training" in line and line.endswith(memory.gib(then.main.peak))

    def test_offloaded_blocks_are_said(self):
        device, main, _, blocks = self.lines(16 * GIB)
        least = flux(apart=True, offload=Offload.BLOCKS)
        assert f"{memory.gib(least.train)} training" in device and f"{memory.gib(least.main.train)} training" in main
        assert blocks.strip() == "the denoiser's blocks and their inputs stay in main memory until they compute"
