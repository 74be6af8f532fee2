"""A job in lines for a person."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from engine.job.advice.describe import describe, warnings
from engine.results import held_out_rows
from engine.results.checkpoint import Checkpoint
from engine.task.plan.extent import Extent
from engine.task.task import Dataset
from engine.training.buckets import Bucket, Buckets
from engine.training.methods.warm_start import WarmStart
from tests.support.jobs import FLOW_SPEC, held_out_of, job_of, text
from tests.support.published_models import base_of


class TestAdapterOptions:
    @pytest.mark.parametrize(
        "extra, key, value",
        [
            ({"lora": {"alpha": 4}}, "alpha", 4.0),
            ({"lora": {"use_rslora": True}}, "use_rslora", True),
            ({"train_args": {"train_text_encoder": True}}, "train_text_encoder", True),
            ({"train_args": {"zero_terminal_snr": True}}, "zero_terminal_snr", True),
            ({"transforms": {"buckets": True}}, "buckets", True),
            ({"dataset": {"name": "d", "max_caption_tokens": 225}}, "max_caption_tokens", 225),
        ],
    )
    def test_what_the_weights_mean_belongs_to_the_world_where_set(self, extra, key, value):
        before, now = job_of().invariants, job_of(text(**extra)).invariants
        assert key not in before and now == before | {key: value}

    def test_an_alpha_that_is_the_rank_is_the_default(self):
        assert job_of(text(lora={"rank": 3, "alpha": 3})).invariants == job_of(text(lora={"rank": 3})).invariants

    @pytest.mark.parametrize(
        "extra, change",
        [
            ({"lora": {"dropout": 0.25}}, {"lora.dropout": [None, 0.25]}),
            ({"validation": {"every_n_steps": 5}}, {"validation.every_n_steps": [None, 5]}),
            (
                {"train_args": {"text_encoder_learning_rate": 0.5}},
                {"train_args.text_encoder_learning_rate": [None, 0.5]},
            ),
        ],
    )
    def test_how_they_are_trained_may_change_and_is_recorded(self, extra, change):
        before = job_of()
        given = {"settings": before.recorded_settings, "digest": "d", "global_step": 1}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        now = job_of(text(**extra), parent=chain)
        assert now.invariants == before.invariants and now.changed_settings() == change

    def test_the_text_encoders_rate_is_told_where_it_is_trained(self):
        args = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-5, "batch_size": 4}
        lines = described(train_args=args)
        assert "learning rate  0.0004, constant (0.0001 x 4 by scale_lr)" in lines
        assert "text encoder   4e-05, constant" in lines
        assert not any(line.startswith("text encoder") for line in described())


def test_a_plan_shows_no_secrets_of_addresses():
    secret = "https://me:hidden@example.org/a.zip?token=hidden"
    job = job_of()
    task = replace(job.task, model=replace(job.task.model, name=secret), dataset=Dataset(url=secret))
    lines = describe(replace(job, task=task))
    assert "hidden" not in "".join(lines) and sum("https://example.org/a.zip?…" in line for line in lines) == 2


def described(**extra):
    return describe(job_of(text(**extra)))


def test_the_plan_tells_what_is_made_in_between():
    steps = {"num_train_steps": 100, "max_train_steps": 1000}
    lines = described(train_args=steps, validation={"every_n_steps": 40}, checkpoint_every_n_steps=10)
    assert "images also    after steps 40, 80" in lines
    assert "LoRAs also     after steps 10, 20, 30, …, 90; the checkpoint keeps the latest 5 of the whole chain" in lines
    assert not any("images also" in line or "LoRAs also" in line for line in described(train_args=steps))


class TestFlowMatching:
    CONFIGS: ClassVar = {"scheduler": {"shift": 3.0}, "transformer": {"guidance_embeds": True}}

    @pytest.mark.parametrize(
        "args, expected",
        [
            (
                {},
                "logit_normal (mean 0, standard deviation 1), as is usual for this model; "
                "shift 3, as the base model's scheduler says; guidance scale 1",
            ),
            (
                {"timestep_sampling": "mode", "flow_shift": "resolution", "resolution": 1024, "guidance_scale": 3.5},
                "mode (scale 1.29); shift 3.158 at 1024 x 1024 pixels; guidance scale 3.5",
            ),
            ({"timestep_sampling": "uniform", "flow_shift": 2}, "uniform; shift 2; guidance scale 1"),
        ],
    )
    def test_how_timesteps_are_drawn_and_what_they_mean(self, args, expected):
        lines = describe(job_of(text(train_args=args), family=FLOW_SPEC, configs=self.CONFIGS))
        assert f"timesteps      {expected}" in lines

    def test_a_denoiser_that_is_told_no_guidance(self):
        (line,) = (line for line in describe(job_of(family=FLOW_SPEC)) if line.startswith("timesteps"))
        assert line.endswith("shift 1, as the base model's scheduler says")

    def test_other_models_have_no_such_line(self):
        assert not any(line.startswith("timesteps") for line in described())


class TestMethods:
    """What differs between a LoRA and a whole model."""

    @pytest.mark.parametrize(
        "given, expected",
        [
            ({}, "trains         a LoRA: 797,184 values"),
            ({"training_type": "full"}, "trains         a whole model: 859,520,964 values"),
            (
                {"training_type": "full", "train_args": {"ema_decay": 0.999, "train_text_encoder": True}},
                "trains         a whole model: 982,581,444 values; moving average with a decay of up to 0.999",
            ),
        ],
    )
    def test_the_number_of_trained_values(self, given, expected):
        job = job_of(text(**{"lora": {"rank": 4}} | given))
        job.base.config = base_of("sd1").config
        assert expected in describe(job)

    def test_what_is_kept_and_from_what_it_starts(self):
        steps = {"num_train_steps": 100, "max_train_steps": 100}
        lines = described(training_type="full", train_args=steps, checkpoint_every_n_steps=40)
        assert "models also    after steps 40, 80; the checkpoint keeps the latest 5 of the whole chain" in lines
        assert "starts from    the base model's weights" in lines
        assert "starts from    a new LoRA" in described()
        lines = described(training_type="full", train_args=steps, checkpoint_every_n_steps=100)
        assert any("a whole model is kept every 100 steps" in line for line in lines)

    def test_weights_without_training_state(self):
        warm = WarmStart(folder=None, digest="cd" * 32, hashes={"unet/config.json": "ab" * 32})
        lines = describe(job_of(text(training_type="full"), parent=warm))
        assert any("starts from    a whole model without training state (" in line for line in lines)


def test_loras_that_are_kept_are_a_setting_where_they_are():
    assert not any(key.startswith("checkpoint") for key in job_of().recorded_settings)
    told = job_of(text(checkpoint_every_n_steps=7, checkpoint="/c")).recorded_settings
    assert {key: told[key] for key in told if key.startswith("checkpoint")} == {"checkpoint_every_n_steps": 7}


@pytest.mark.parametrize("key", [{"validation": {"every_n_steps": 100}}, {"checkpoint_every_n_steps": 101}])
def test_an_interval_beyond_the_end_is_noted(key):
    for max_steps, expected in ((100, 1), (102, 0)):
        lines = described(train_args={"max_train_steps": max_steps}, **key)
        assert (
            sum(f"the whole training has {max_steps}: this happens only at its end" in line for line in lines)
            == expected
        )


class TestHeldOut:
    FOLDER = text(validation={"dataset": {"name": "/held"}})

    def test_other_images_are_noted_not_refused(self):
        before = job_of(self.FOLDER, held_out=held_out_of())
        given = {"settings": before.recorded_settings, "digest": "d", "global_step": 1}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        now = job_of(self.FOLDER, parent=chain, held_out=held_out_of("d" * 64))
        assert now.changed_settings() == {"validation.dataset": [before.curve, now.curve]}
        assert now.invariants == before.invariants
        assert any("it begins a new curve" in line for line in warnings(now))
        assert f"validation.dataset changes from '{before.curve}' to '{now.curve}' at step 0" in warnings(now)

    @pytest.mark.parametrize(
        "validation, held_out, expected",
        [
            (
                {"fraction": 0.5},
                {"taken": 5},
                "3 of 5 images taken out of the dataset, measured before and after this task: "
                "2 times 12 forward passes",
            ),
            (
                {"name": "x"},
                {},
                "3 of 5 images, measured before and after this task: 2 times 12 forward passes",
            ),
        ],
    )
    def test_the_plan_says_what_is_measured_and_when(self, validation, held_out, expected):
        job = job_of(text(validation={"dataset": validation}), held_out=held_out_of(**held_out))
        (line,) = [line for line in describe(job) if line.startswith("held-out loss")]
        assert line == f"held-out loss  {expected}"
        assert not any(line.startswith("held-out") for line in describe(job_of()))

    def test_the_plan_knows_what_is_measured_already(self):
        job = job_of(text(validation={"dataset": {"split": "test"}, "every_n_steps": 4}), held_out=held_out_of())
        rows = held_out_rows.dump([held_out_rows.Row(4, 0.5, (0.5,), 3, job.curve)])
        given = {"settings": job.recorded_settings, "digest": "d", "global_step": 4, "held_out_losses": rows}
        chain = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | given)
        job = replace(job, parent=chain, step_range=replace(job.step_range, start_step=4, stop_step=10, max_steps=20))
        (line,) = [line for line in describe(job) if line.startswith("held-out loss")]
        assert line.endswith(
            ", measured before and after this task, every 4 steps: 2 times 12 forward passes"
        )  # after 8 and 10


def test_a_plan_tells_of_the_buckets():
    rows = [Bucket(Extent(64, 256), np.arange(6), 6), Bucket(Extent(128, 128), np.arange(6, 10), 4)]
    found = Buckets(sizes=(), frame_counts=(1,), members=tuple(rows), kept=0.9, kept_by_squares=0.5)
    lines = describe(replace(job_of(text(train_args={"batch_size": 5})), buckets=found))
    assert "buckets        64 x 256: 6, 128 x 128: 4 images" in lines
    assert lines[-1].startswith("note: 1 of 2 buckets has fewer images than batch_size 5")
    assert not any(line.startswith("buckets") for line in described())


def test_a_plan_tells_of_validation_images_of_other_sizes():
    assert not any(line.startswith("validation ") for line in described())
    lines = described(validation={"prompts": ["a", {"prompt": "b", "width": 96}, {"prompt": "c", "width": 96}]})
    side = job_of().task.train_args.resolution
    assert f"validation     2 images of {side} x {side}, 2 images of 96 x {side}" in lines
