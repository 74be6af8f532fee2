"""What the loop does once a step instead of once a layer, and ahead of time, changes no bit."""

import copy
from dataclasses import replace

import pytest
import torch

from engine.models.family import PRECISIONS
from engine.results.outcome import Clock
from engine.task.task import Lora
from engine.training.assembly import assemble
from engine.training.encoding.batches import BatchMaker
from engine.training.methods.lora.adapter import attach
from engine.training.methods.lora.method import LoraTraining
from engine.training.optimizers.adamw import AdamW
from engine.training.trainer import train
from tests.support.fakes import CPU, LinearFamily
from tests.support.states import dump_state, parse_state
from tests.unit.training.test_trainer import Run, examples_of, make_step_range, make_task


class TestAhead:
    """The next step's first micro-batch, prepared before the host waits for this one's loss."""

    def run(self, *, at_hand, text=False):
        run, asked = Run(make_task(train_text_encoder=text)), []

        def examples(step):
            asked.append(step)
            return examples_of(run.step_range, step, text)

        def some(step):
            return examples_of(run.step_range, step, text) if step in at_hand else ()

        train(run.trainer, run.step_range, examples, run.reports.append, Clock(), at_hand=some)
        return run, asked

    @pytest.mark.parametrize("text", [False, True])
    def test_the_bits_do_not_depend_on_it(self, text):
        plain, _ = self.run(at_hand=(), text=text)
        for at_hand in ({1, 2, 5, 6, 7}, set(range(8))):
            ahead, asked = self.run(at_hand=at_hand, text=text)
            assert ahead.bytes() == plain.bytes() and ahead.reports == plain.reports
            assert asked == [step for step in range(8) if step == 0 or step not in at_hand]

    def test_it_is_prepared_once_and_before_the_update(self, monkeypatch):
        events = []
        prepare, update = BatchMaker.prepare, AdamW.update

        def prepared(maker, examples):
            events.append(examples[0].visit.number)
            return prepare(maker, examples)

        def updated(*args):
            events.append("update")
            update(*args)

        monkeypatch.setattr(BatchMaker, "prepare", prepared)
        monkeypatch.setattr(AdamW, "update", updated)
        run = Run()
        run.trainer.train_step(examples_of(run.step_range, 0), coming := examples_of(run.step_range, 1))
        run.trainer.train_step(coming)
        assert events == [0, 2, 4, 6, "update", 8, 10, "update"]

    def test_what_was_prepared_of_other_examples_is_not_used(self):
        run, plain = Run(), Run()
        run.trainer.train_step(examples_of(run.step_range, 0), examples_of(run.step_range, 4))
        plain.step()
        assert run.step() == plain.step() and run.bytes() == plain.bytes()


class TestWorkingCopy:
    """A step's copy of the adapter in the task's precision, on a denoiser whose layer computes in it."""

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_it_changes_no_bit(self, precision):
        task, states = make_task(precision, max_grad_norm=0.5), []
        for has_copy in (True, False):
            family = LinearFamily()
            adapter = attach(
                {"unet": family.denoiser.to(PRECISIONS[precision])}, Lora(rank=3, alpha=2), 0, spec=family.spec
            )
            adapter = adapter if has_copy else replace(adapter, fused={})
            start = copy.deepcopy(adapter.state())
            for stop in (2, 5):  # the second trainer goes on from the first one's state
                step_range = make_step_range(task, stop - 2, stop)
                for layer in adapter.fused.values():
                    layer.copies = None
                trainable = LoraTraining(family, adapter, PRECISIONS[precision])
                trainer = assemble(task, step_range, family, trainable, CPU)
                if stop > 2:
                    trainer.restore(parse_state(*states.pop()))
                reports = []
                train(trainer, step_range, lambda k, s=step_range: examples_of(s, k), reports.append, Clock())
                states.append(dump_state(trainer.state()))
            assert not torch.equal(adapter.state()["unet.to_q.lora_A.weight"], start["unet.to_q.lora_A.weight"])
        assert states[0] == states[1]
