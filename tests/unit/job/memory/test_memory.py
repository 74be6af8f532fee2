"""Predictions of memory against what torch holds in fact, for the published models' sizes."""

from dataclasses import replace

from engine.job import memory
from engine.task.task import Lora
from tests.support.published_models import GIB, base_of, cpu, gpu, peak, task_of


class TestWords:
    def test_with_unknown_memory_both_are_said(self):
        lines = memory.describe(base_of("sd1"), task_of(), gpu(None))
        plain, saving = (peak("sd1", recompute=recompute).train for recompute in (False, True))
        assert f"{memory.gib(plain)} training" in lines[0] and "0.5 GiB for CUDA" in lines[0]
        assert memory.gib(int(plain / 0.9)) in lines[1] and memory.gib(saving) in lines[1]

    def test_the_decision_and_why(self):
        line, main, _ = memory.describe(base_of("sd1"), task_of(), gpu(80 * GIB))
        assert line.endswith("; without gradient checkpointing (auto: 80.0 GiB available)")
        assert main.strip().startswith("main memory, plus the program itself: ")
        line, *_ = memory.describe(base_of("sd1"), task_of(gradient_checkpointing=True), gpu(80 * GIB))
        assert line.endswith("; with gradient checkpointing")

    def test_on_a_cpu_there_is_one_memory(self):
        (line,) = memory.describe(base_of("sd1"), task_of(), cpu(80 * GIB))
        assert "on this machine, plus the program itself" in line

    def test_what_does_not_fit_is_said_with_what_would(self):
        task = task_of("no", batch_size=8, gradient_checkpointing=False)
        lines = memory.describe(base_of("sd1"), task, gpu(10 * GIB))
        assert lines[-1].startswith("note: that is more than the 10.0 GiB available; what should fit: ")
        assert "gradient_checkpointing true (" in lines[-1]

    def test_what_is_proposed_fits_and_trains_as_many_images(self):
        lora = Lora(rank=4, init_lora_weights="loftq")  # which needs the original weights: these are not quantised
        task = task_of("no", lora, batch_size=8, gradient_accumulation_steps=3)
        found = memory.fitting(base_of("xl"), task, gpu(24 * GIB))
        assert found and all(float(words.split("(")[1].split()[0]) <= 24 * 0.9 for words in found)
        (batches,) = (words for words in found if words.startswith("batch_size "))
        size, steps = (int(word) for word in batches.split() if word.isdigit())
        assert size * steps == 8 * 3
        assert memory.fitting(base_of("xl"), task, gpu(GIB)) == []

    def test_what_is_there_already_is_not_proposed(self):
        task = task_of("bf16", resolution=256, gradient_checkpointing=True)
        task = replace(task, model=replace(task.model, quantization="nf4"))
        assert memory.fitting(base_of("sd1"), task, gpu(80 * GIB)) == []
        args = replace(task.train_args, gradient_checkpointing=False)
        found = memory.fitting(base_of("sd1"), replace(task, train_args=args), gpu(80 * GIB))
        assert [words.split(" (")[0] for words in found] == ["gradient_checkpointing true"]
