"""Jobs without a model, a dataset or a folder."""

import json
from types import SimpleNamespace

from engine.data.dataset.held_out import HeldOut
from engine.job.job import Job
from engine.models.families.sd.spec import SPEC
from engine.models.objectives.registry import OBJECTIVES
from engine.task.plan.steps import StepRange
from engine.task.plan.timesteps import Timesteps
from engine.task.task import parse_task

COMMIT = "a" * 40


class Rows(list):
    """A dataset of so many rows."""

    fingerprint, revision = "f" * 64, None

    def __init__(self, count):
        super().__init__(range(count))
        self.num_images = count


def held_out_of(fingerprint="e" * 64, revision=None, taken=0):
    return HeldOut(images=Rows(3), num_images=5, fingerprint=fingerprint, revision=revision, num_taken=taken)


def job_of(given=None, *, parent=None, base_revision=None, rows=10, held_out=None):
    task = parse_task((given or text()).encode(), source="test")
    return Job(
        task=task,
        base=SimpleNamespace(
            identity="sha256:model",
            revision=base_revision,
            variants={},
            num_train_timesteps=1000,
            single_file=None,
            family=SPEC,
            objective=OBJECTIVES[SPEC.objective],
            config=lambda component: {},
            timesteps=lambda args: Timesteps.of(args, 1000),
            timestep_sampling=lambda args: None,
            describe_noise=lambda args: None,
        ),
        dataset=Rows(rows),
        parent=parent,
        in_place=False,
        step_range=StepRange.of(task.train_args, num_rows=rows, processes=1, start_step=0),
        prediction_type="epsilon",
        held_out=held_out,
    )


def before_of(base_model=None, revision="main"):
    """What an earlier start or the chain's parent found."""
    return {"base_model": base_model or {}, "dataset": {}, "revision": revision}


def text(**extra):
    required = {"model": {"name": "m"}, "dataset": {"name": "d"}, "validation": {}, "train_args": {}}
    return json.dumps(required | extra)
