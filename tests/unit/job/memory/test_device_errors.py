"""The advice of a job that ran out of memory."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from engine.job import memory
from engine.job.memory.device_errors import memory_advice
from engine.task.task import Lora
from tests.support.published_models import GIB, base_of, cpu, task_of


class TestAdvice:
    """What a job that ran out of memory says."""

    JOB = SimpleNamespace(base=base_of("sd1"), task=task_of("no", batch_size=8, resolution=768), parent=None)

    def test_it_is_what_would_fit(self):
        said = memory_advice(self.JOB, torch.device("cpu"), cpu(8 * GIB))
        fits = memory.fitting(self.JOB.base, self.JOB.task, cpu(8 * GIB))
        assert len(fits) > 1 and said.startswith("out of memory on this machine, of which 8.0 GiB were free; ")
        assert all(words in said for words in fits)

    def test_where_nothing_is_known_it_is_what_takes_less(self):
        said = memory_advice(self.JOB, torch.device("cpu"), cpu(None))
        assert said.startswith('out of memory on this machine; try mixed_precision "bf16", or batch_size 1 with ')
        assert "gradient_accumulation_steps 8 (as many images a step)" in said

    def test_what_cannot_be_less_is_not_proposed(self):
        least = SimpleNamespace(base=base_of("sd1"), task=task_of("bf16", Lora(rank=1), resolution=64), parent=None)
        said = memory_advice(least, torch.device("cpu"), cpu(None))
        assert said == "out of memory on this machine; try a machine with more memory"

    def test_of_a_whole_model(self):
        task = replace(task_of("bf16", ema_decay=0.9, resolution=64, train_text_encoder=True), training_type="full")
        job = SimpleNamespace(base=base_of("sd1"), task=task, parent=None)
        said = memory_advice(job, torch.device("cpu"), cpu(None))
        expected = 'ema_decay null, or train_text_encoder false, or training_type "lora", or a machine with more memory'
        assert said == f"out of memory on this machine; try {expected}"

    def test_where_nothing_would_fit_it_says_so(self):
        assert "no change of the task would fit" in memory_advice(self.JOB, torch.device("cpu"), cpu(GIB))

    def test_a_checkpoint_can_be_continued_by_few_of_these(self):
        def advice(continues):
            return memory.advise(self.JOB.base, self.JOB.task, cpu(8 * GIB), continues=continues)

        assert "only gradient_checkpointing may differ from the checkpoint's" in advice(
            True
        ) and "checkpoint" not in advice(False)
