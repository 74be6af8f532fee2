"""The loop on a linear model: cut anywhere it is the same, and nothing non-finite is ever applied."""

import copy
import math
import weakref

import pytest
import torch

from engine.core import rng
from engine.core.errors import NonFiniteError
from engine.models.family import Batch
from engine.models.objectives.objective import LossOptions
from engine.results.outcome import Clock
from engine.results.state import LossScale
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset, LrScheduler, Model, Task, TrainArgs
from engine.training.assembly import assemble
from engine.training.distributed.processes import Processes
from engine.training.encoding.visit_encoder import Example
from engine.training.optimizers.lr_schedule import schedule_factor
from engine.training.trainer import train
from tests.support.fakes import CPU, LinearFamily, PlainTrainable
from tests.support.states import dump_state, parse_state

ROWS = 5


def make_task(mixed_precision="no", **args):
    values = {
        "learning_rate": 0.05,
        "scale_lr": False,
        "batch_size": 2,
        "gradient_accumulation_steps": 3,
        "lr_scheduler": LrScheduler(lr_scheduler="cosine", lr_warmup_steps=2),
    }
    return Task(
        model=Model(name="m"),
        dataset=Dataset(name="d"),
        train_args=TrainArgs(**(values | args)),
        mixed_precision=mixed_precision,
        seed=3,
    )


def make_step_range(task, start=0, stop=8, max_steps=8):
    args = task.train_args
    return StepRange(
        num_rows=ROWS,
        batch_size=args.batch_size,
        micro_batches=args.gradient_accumulation_steps,
        start_step=start,
        stop_step=stop,
        max_steps=max_steps,
    )


def examples_of(step_range, step, text=False):
    stream = VisitStream(seed=3, num_rows=ROWS, random_flip=False, num_train_timesteps=1000)
    family, per_step = LinearFamily(), step_range.visits_per_step
    return [
        Example(
            visit,
            {"mean": torch.linspace(0, 1, 4) * (visit.sample + 1), "logvar": torch.full((4,), -2.0)},
            {} if text else family.encode_caption(f"sample {visit.sample}"),
            family.tokenize(f"sample {visit.sample}") if text else {},
        )
        for visit in stream.visits(step * per_step, per_step)
    ]


class Run:
    """A trainer with all its parts."""

    def __init__(self, task=None, *, start=0, stop=8, restore=None, processes=None):
        self.task = task or make_task()
        self.text = self.task.train_args.train_text_encoder
        self.family, self.trainable = self.model()
        self.processes = processes or Processes()
        self.step_range = make_step_range(self.task, start, stop)
        self.trainer = assemble(self.task, self.step_range, self.family, self.trainable, CPU, processes=processes)
        self.reports = []
        if restore is not None:
            self.trainer.restore(restore)

    def model(self):
        family = LinearFamily()
        return family, PlainTrainable.of(family, with_text_encoder=self.text)

    def train(self, stop=None):
        step_range = make_step_range(self.task, self.step_range.start_step, stop or self.step_range.stop_step)
        train(self.trainer, step_range, self.examples, self.reports.append, Clock())
        return self

    def examples(self, step):
        """Those of this process's micro-batches."""
        found = examples_of(self.step_range, step, self.text)
        size, processes = self.step_range.batch_size, self.processes
        return [example for k, example in enumerate(found) if processes.owner(k // size) == processes.rank]

    def step(self):
        return self.trainer.train_step(self.examples(self.trainer.step))

    def bytes(self):
        return dump_state(self.trainer.state())


class TestSplit:
    @pytest.mark.parametrize("cuts", [(1,), (7,), (3, 4), (1, 2, 3, 5)])
    @pytest.mark.parametrize("precision, text", [("no", False), ("fp16", False), ("no", True)])
    def test_a_chain_of_processes_equals_one(self, cuts, precision, text):
        task = make_task(precision, train_text_encoder=text, text_encoder_learning_rate=0.01)
        whole = Run(task).train()
        state, reports = None, []
        for start, stop in zip((0, *cuts), (*cuts, 8), strict=True):
            link = Run(task, start=start, stop=stop, restore=state).train()
            state = parse_state(*link.bytes())
            reports += link.reports
        assert dump_state(state) == whole.bytes()
        assert reports == whole.reports and [report.step for report in reports] == list(range(1, 9))

    def test_the_examples_of_a_step_are_asked_for_a_micro_batch_at_a_time(self):
        asked, trained = [], []

        class Counted(list):
            def __getitem__(self, place):
                asked.append((place.start, place.stop))
                return super().__getitem__(place)

        run, plain = Run(), Run()
        step = Counted(examples_of(run.step_range, 0))
        loss = run.family.loss
        run.family.loss = lambda *args: trained.append(len(asked)) or loss(*args)
        assert run.trainer.train_step(step) == plain.step() and run.bytes() == plain.bytes()
        assert asked == [(0, 2), (2, 4), (4, 6)] and trained == [2, 3, 3], "one ahead, no more"

    def test_something_was_trained(self):
        run = Run()
        before = copy.deepcopy(run.trainable.state())
        losses = [report.loss for report in run.train().reports]
        assert losses[-1] < losses[0]
        assert not torch.equal(run.trainable.state()["unet.to_q.lora_A.weight"], before["unet.to_q.lora_A.weight"])

    def test_nothing_is_left_to_train(self):
        run = Run(start=8)
        before = run.bytes()
        assert run.train().reports == [] and run.bytes() == before

    def test_each_step_is_asked_for_once_in_order_and_seen_whole(self):
        run, asked = Run(), []

        def examples(step):
            asked.append(("examples", step))
            return examples_of(run.step_range, step)

        train(run.trainer, run.step_range, examples, lambda report: asked.append(("after", report.step)), Clock())
        assert asked == [pair for k in range(8) for pair in (("examples", k), ("after", k + 1))]


class TestStep:
    def test_it_is_the_ordered_sum_of_its_micro_batches(self):
        """Written out with plain tensors: noise by visit number, gradients summed in order, AdamW, the step's rate."""
        task = make_task(max_grad_norm=0.5)
        run = Run(task)
        run.trainer.step = 2  # a step whose rate is not zero
        step_range, weight = run.step_range, run.trainable.parameters["unet.to_q.lora_A.weight"]
        reference = torch.nn.Parameter(weight.detach().clone())
        adam = torch.optim.AdamW([reference], lr=0.05 * 0.5 * (1 + math.cos(0)), foreach=True)
        total, losses = None, []
        visited = examples_of(step_range, 2)
        for k in range(3):
            latents, noise = [], []
            for example in visited[2 * k : 2 * k + 2]:
                number = example.visit.number
                posterior, own = (
                    torch.from_numpy(rng.normal(3, name, number, (4,))) for name in ("vae posterior", "noise")
                )
                latents.append(example.moments["mean"] + torch.exp(0.5 * example.moments["logvar"]) * posterior)
                noise.append(own)
            batch = Batch(
                latents=torch.stack(latents),
                noise=torch.stack(noise),
                timesteps=torch.tensor([example.visit.timestep for example in visited[2 * k : 2 * k + 2]]),
                conditioning={"states": torch.stack([e.conditioning["states"] for e in visited[2 * k : 2 * k + 2]])},
            )
            family = LinearFamily()
            family.denoiser["to_q"].weight = reference
            loss = family.loss(batch, LossOptions())
            (gradient,) = torch.autograd.grad(loss, [reference])
            total = gradient if total is None else total + gradient
            losses.append(loss.detach())
        reference.grad = total / 3
        norm = torch.nn.utils.clip_grad_norm_([reference], 0.5)
        assert norm > 0.5, "clipping should matter here"
        adam.step()
        report = run.trainer.train_step(visited)
        assert torch.equal(weight.detach(), reference.detach())
        assert report.loss == torch.stack(losses).mean().item() and report.grad_norm == norm.item()

    def test_the_order_of_micro_batches_is_part_of_the_bits_not_their_size(self):
        """K = 3 of 2 and K = 2 of 3 visit the same samples; neither is the other's, but both repeat."""
        runs = [
            Run(make_task(batch_size=b, gradient_accumulation_steps=k)).train().bytes() for b, k in ((2, 3), (3, 2))
        ]
        assert runs[0] != runs[1]
        assert Run().train().bytes() == runs[0]

    @pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "polynomial", "constant_with_warmup"])
    def test_the_rate_is_the_schedules(self, schedule):
        task = make_task(
            scale_lr=True, lr_scheduler=LrScheduler(lr_scheduler=schedule, lr_warmup_steps=3), learning_rate=0.001
        )
        run = Run(task).train()
        base = 0.001 * 2 * 3
        expected = [base * schedule_factor(base, schedule, k, warmup_steps=3, max_steps=8) for k in range(8)]
        assert [report.learning_rate for report in run.reports] == expected

    def test_noise_offset_changes_the_noise(self):
        assert Run(make_task(noise_offset=0.1)).step() != Run(make_task(noise_offset=0.0)).step()


class TestTextEncoder:
    TASK = make_task(
        train_text_encoder=True, text_encoder_learning_rate=0.02, lr_scheduler=LrScheduler(), max_grad_norm=0.3
    )

    def test_an_untrained_one_embeds_in_the_loop_what_is_otherwise_encoded_ahead(self):
        in_loop, ahead = Run(self.TASK), Run(make_task(lr_scheduler=LrScheduler(), max_grad_norm=0.3))
        assert in_loop.step().loss == ahead.step().loss

    def test_it_is_trained_at_its_own_rate_and_clipped_with_the_rest(self):
        run = Run(self.TASK)
        before, found = copy.deepcopy(run.trainable.state()), {}
        for name, parameter in run.trainable.parameters.items():
            parameter.register_hook(lambda gradient, name=name: found.setdefault(name, []).append(gradient))
        report = run.step()
        gradients = {name: (own[0] + own[1] + own[2]) / 3 for name, own in found.items()}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5) and norm > 0.3
        assert report.learning_rate == 0.05
        for name, rate in (("unet.to_q.lora_A.weight", 0.05), ("text_encoder.q_proj.lora_A.weight", 0.02)):
            # AdamW's first step: the rate times the gradient's sign, after the weights' decay.
            moved = run.trainable.state()[name] - before[name] * (1 - rate * 0.01)
            torch.testing.assert_close(moved, -rate * gradients[name].sign(), rtol=1e-4, atol=1e-6)

    def test_without_a_rate_of_its_own_it_has_the_denoisers(self):
        same = [
            Run(make_task(train_text_encoder=True, text_encoder_learning_rate=rate)).train().bytes()
            for rate in (None, 0.05, 0.04)
        ]
        assert same[0] == same[1] != same[2]

    def test_its_rate_too_must_be_one_that_weights_survive(self):
        run = Run(make_task(train_text_encoder=True, text_encoder_learning_rate=1e300, lr_scheduler=LrScheduler()))
        with pytest.raises(NonFiniteError, match="learning rate of step 1 is 1e"):
            run.step()


def test_a_method_knows_which_micro_batch_is_under_way():
    run, seen = Run(), []
    loss = run.family.loss
    run.family.loss = lambda *args, **options: seen.append(run.trainable.address) or loss(*args, **options)
    run.train(stop=2)
    assert seen == [0, 2, 4, 6, 8, 10] and run.trainable.address is None


class TestNonFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_stops_before_the_update(self, bad):
        run = Run().train(stop=3)
        before = run.bytes()
        run.family.loss_factors = iter([1.0, bad, 1.0])
        with pytest.raises(NonFiniteError, match="the loss of step 4") as caught:
            run.step()
        assert run.bytes() == before and caught.value.code == 8

    def test_a_gradient_stops_before_the_update(self):
        run = Run().train(stop=3)
        before = run.bytes()
        run.trainable.parameters["unet.to_q.lora_A.weight"].register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(NonFiniteError, match="the gradient's norm at step 4"):
            run.step()
        assert run.bytes() == before

    @pytest.mark.parametrize("rate", [3e38, 1e300])
    def test_weights_never_become_non_finite(self, rate):
        """A finite gradient may still make an infinite weight. It must not be published, nor saved as the last good
        state, which would then be refused as malformed."""
        task = make_task(learning_rate=rate, lr_scheduler=LrScheduler())
        run = Run(task)
        before = run.bytes()
        try:
            run.step()
        except NonFiniteError:
            assert run.bytes() == before
        weight = run.trainable.parameters["unet.to_q.lora_A.weight"]
        assert bool(torch.isfinite(weight).all())


class TestLossScale:
    """fp16 on a CPU: a family that computes in float32 leaves only the scale's logic to see."""

    def overflowing(self, run, factor=math.inf):
        """The next step's scaled gradients overflow, its loss does not."""
        parameter = run.trainable.parameters["unet.to_q.lora_A.weight"]
        return parameter.register_hook(lambda gradient: gradient * factor)

    def test_the_scale_cancels_exactly(self):
        scaled, plain = Run(make_task("fp16")).train(), Run(make_task("no")).train()
        assert scaled.bytes()[0] == plain.bytes()[0], "a power of two changes no bit"
        assert scaled.reports == plain.reports

    def test_a_skipped_step_counts_and_changes_nothing_but_the_scale(self):
        run = Run(make_task("fp16")).train(stop=3)
        before = copy.deepcopy(run.trainer.state())
        handle = self.overflowing(run)
        report = run.step()
        after = run.trainer.state()
        assert (report.step, report.grad_norm, after.global_step) == (4, None, 4)
        assert math.isfinite(report.loss)
        assert after.optimizer.updates == before.optimizer.updates == 3
        assert after.loss_scale == LossScale(before.loss_scale.scale / 2, 0)
        assert dump_state(after)[0] == dump_state(before)[0]
        handle.remove()
        run.step()
        assert run.trainer.state().optimizer.updates == 4 and run.trainer.step == 5

    def test_all_steps_skipped_so_far_can_be_continued(self):
        whole, first = Run(make_task("fp16")), Run(make_task("fp16"))
        for run in (whole, first):
            handle = self.overflowing(run)
            run.step()
            handle.remove()
        second = Run(make_task("fp16"), start=1, restore=parse_state(*first.bytes())).train()
        assert second.bytes() == whole.train().bytes()

    def test_a_scale_below_one_ends_it(self):
        run = Run(make_task("fp16"))
        run.trainer._loss_scale = LossScale(1.0, 5)
        before = run.bytes()
        self.overflowing(run)
        with pytest.raises(NonFiniteError, match="loss scale fell below 1 at step 1"):
            run.step()
        assert run.bytes() == before

    def test_a_nan_loss_is_no_overflow(self):
        run = Run(make_task("fp16"))
        run.family.loss_factors = iter([math.nan])
        with pytest.raises(NonFiniteError, match="the loss of step 1"):
            run.step()


def test_the_optimizer_is_freed_at_the_end():
    run = Run().train(stop=1)
    moment = weakref.ref(next(iter(run.trainer.state().optimizer.slots["exp_avg"].values())))
    assert moment() is not None
    run.trainer.end()
    assert moment() is None
