"""What a job will write, and the disks that it would not fit on."""

import json
import os
from types import SimpleNamespace

import pytest

from engine.core.errors import OutputError
from engine.job.advice import disk_space
from engine.job.job import Job
from engine.job.memory import gib
from engine.results.checkpoint import Checkpoint
from engine.task.plan.steps import StepRange
from engine.task.task import parse_task
from tests.support.jobs import Rows
from tests.support.published_models import base_of

MIB = 1 << 20


def job_of(*, base="sd1", parent=None, **given):
    task = {"model": {"name": "m"}, "dataset": {"name": "d"}, "validation": {"num_images": 2}}
    task |= {"lora": {"rank": 4}}
    task["train_args"] = {"num_train_steps": 100, "max_train_steps": 1000, "resolution": 512}
    for key, value in given.items():
        task[key] = task.get(key, {}) | value if isinstance(value, dict) else value
    parsed = parse_task(json.dumps(task).encode(), source="test")
    start = 100 if parent else 0
    return Job(
        task=parsed,
        base=base_of(base),
        dataset=Rows(10),
        parent=parent,
        in_place=False,
        step_range=StepRange.of(parsed.train_args, num_rows=10, processes=1, start_step=start),
        prediction_type="epsilon",
    )


class TestPrediction:
    LORA = 797_184 * 4
    """SD 1.5's attention at rank 4, float32: what everybody's training scripts write."""
    PICTURE = 512 * 512 * 2

    def test_of_a_plain_training(self):
        found = disk_space.predict(job_of())
        assert found.progress == pytest.approx(3 * self.LORA, rel=0.01)
        assert found.result == pytest.approx(5 * self.LORA + 2 * 5 * self.PICTURE + MIB, rel=0.01)

    def test_loftq_keeps_its_start_values_too(self):
        plain, quantised = (disk_space.predict(job_of(lora={"init_lora_weights": init})) for init in (True, "loftq"))
        assert quantised.progress - plain.progress == self.LORA

    def test_images_of_earlier_steps_count_twice_and_weights_once(self):
        """The result has links to the weights."""
        plain = disk_space.predict(job_of())
        for every, limit, count in ((20, 10, 4), (20, 3, 3), (10, 5, 5)):
            found = disk_space.predict(job_of(checkpoint_every_n_steps=every, checkpoint_limit=limit))
            assert found.result - plain.result == count * 2 * self.LORA and found.progress == plain.progress
            assert (found.weights, found.kept) == (2 * self.LORA, count)
        found = disk_space.predict(job_of(validation={"num_images": 2, "every_n_steps": 25}))
        assert found.progress - plain.progress == found.result - plain.result == 3 * 2 * self.PICTURE

    def test_images_count_by_their_own_size(self):
        plain = disk_space.predict(job_of())
        found = disk_space.predict(job_of(validation={"prompts": ["a", {"prompt": "b", "width": 1024}]}))
        assert found.result - plain.result == 5 * self.PICTURE

    def test_a_chain_carries_its_loras_along(self):
        steps = {f"steps/{step:06}{kind}.safetensors": None for step in (20, 40) for kind in ("", "_webui")}
        parent = Checkpoint.__new__(Checkpoint)
        object.__setattr__(parent, "steps", steps)
        plain, chain = (disk_space.predict(job_of(parent=one, checkpoint_every_n_steps=60)) for one in (None, parent))
        assert chain.result - plain.result == pytest.approx((2 + 2 - 1) * 2 * self.LORA, rel=0.01)

    def test_where_nothing_is_known(self, tmp_path):
        job = job_of()
        job.base.config = {}.__getitem__
        assert disk_space.predict(job) is None and disk_space.describe(job) == []
        disk_space.require(job, tmp_path)

    def test_in_a_line(self):
        found = disk_space.predict(job_of())
        line = (
            f"disk           {gib(found.result)} for the result (training state {gib(found.state)}, weights "
            f"{gib(found.weights)}), {gib(found.progress)} more while it trains"
        )
        assert disk_space.describe(job_of()) == [line]
        assert disk_space.describe(job_of(checkpoint_every_n_steps=10))[1:] == [], "a LoRA is small"


class TestWholeModel:
    SD1 = 859_520_964

    @pytest.mark.parametrize("precision, width", [("no", 4), ("bf16", 2), ("fp16", 2)])
    @pytest.mark.parametrize("average", [0, 1])
    def test_the_state_is_float32_and_the_weights_are_of_the_tasks_precision(self, precision, width, average):
        args = {"ema_decay": 0.999} if average else {}
        found = disk_space.predict(job_of(training_type="full", mixed_precision=precision, train_args=args))
        assert found.state == pytest.approx(self.SD1 * 4 * (3 + average), rel=1e-4)
        assert found.weights == self.SD1 * width
        assert found.result == pytest.approx(found.state + found.weights, rel=0.01)
        # The former progress is still there while the next one is saved.
        assert found.progress == found.state

    def test_text_encoders_count_where_they_are_trained(self):
        found = disk_space.predict(job_of(training_type="full", train_args={"train_text_encoder": True}))
        assert found.weights == 4 * (self.SD1 + 123_060_480)

    def test_the_plan_warns_of_kept_steps(self):
        found = disk_space.describe(
            job_of(training_type="full", mixed_precision="bf16", checkpoint_every_n_steps=10, checkpoint_limit=3)
        )
        size, all_sizes = gib(2 * self.SD1), gib(3 * 2 * self.SD1)
        assert found[1:] == [
            f"note: the weights of each step that is kept take {size}, all of them in the end {all_sizes}; "
            "checkpoint_limit says how many are kept"
        ]


class TestRequire:
    @pytest.fixture
    def disk(self, monkeypatch):
        """A disk with so many bytes free, for root and for others."""
        seen = []

        def make(free, *, others=None, blocks=1 << 30):
            def statvfs(path):
                seen.append(path)
                return SimpleNamespace(
                    f_bfree=free, f_bavail=free if others is None else others, f_frsize=1, f_blocks=blocks
                )

            monkeypatch.setattr(os, "statvfs", statvfs)
            return seen

        return make

    def test_too_little_is_said_with_both_figures(self, tmp_path, disk):
        job = job_of()
        needed = disk_space.predict(job).total
        disk(needed)
        disk_space.require(job, tmp_path)
        disk(needed - 1)
        figures = f"{gib(needed)}, and {gib(needed - 1)} are free"
        words = f"not enough disk space in {tmp_path}: .* take about {figures}; free some"
        with pytest.raises(OutputError, match=words) as caught:
            disk_space.require(job, tmp_path)
        assert caught.value.code == 7

    def test_what_an_interrupted_start_has_written_is_replaced(self, tmp_path, disk):
        job = job_of()
        (tmp_path / ".job" / "kept").mkdir(parents=True)
        (tmp_path / ".job" / "progress").write_bytes(bytes(1000))
        (tmp_path / ".job" / "kept" / "x").write_bytes(bytes(500))
        (tmp_path / ".job" / "link").symlink_to("/dev/zero")
        (tmp_path / ".job" / "checkpoint").mkdir()
        (tmp_path / ".job" / "checkpoint" / "state.safetensors").hardlink_to(tmp_path / ".job" / "kept" / "x")
        needed = disk_space.predict(job).total
        disk(needed - 1500)
        disk_space.require(job, tmp_path)
        disk(needed - 1501)
        with pytest.raises(OutputError):
            disk_space.require(job, tmp_path)

    def test_a_folder_that_is_not_there_yet(self, tmp_path, disk):
        seen = disk(0)
        assert disk_space.free_bytes(tmp_path / "a" / "b") == 0 and seen == [tmp_path]

    @pytest.mark.parametrize("user, free", [(0, 10), (1000, 5)])
    def test_some_is_roots_alone(self, tmp_path, disk, monkeypatch, user, free):
        disk(10, others=5)
        monkeypatch.setattr(os, "geteuid", lambda: user)
        assert disk_space.free_bytes(tmp_path) == free

    def test_a_disk_that_does_not_tell(self, tmp_path, disk):
        disk(0, blocks=0)
        assert disk_space.free_bytes(tmp_path) is None
        disk_space.require(job_of(), tmp_path)
