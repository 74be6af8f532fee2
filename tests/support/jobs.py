"""Jobs without a model, a dataset or a folder."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from engine.data.dataset.held_out import HeldOut
from engine.job.job import Job
from engine.models.base_model import BaseModel
from engine.models.families.sd.spec import SPEC
from engine.models.objectives.registry import OBJECTIVES
from engine.models.spec import CaptionTokens, DrawingDefaults
from engine.task.plan.steps import StepRange
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


FLOW_SPEC = replace(
    SPEC,
    pipeline="FlowPipeline",
    objective="flow",
    usual_sampling="logit_normal",
    takes_guidance=lambda config: config("transformer").get("guidance_embeds", False),
    drawing=DrawingDefaults(guidance_scale=3.5, num_inference_steps=28),
    caption_tokens=CaptionTokens(usual=512, most=512, step=1),
)
"""A family that is trained by flow matching."""


def base_of(family=SPEC, revision=None, configs=None):
    """A base model by its configurations, with the methods of a real one."""
    base = SimpleNamespace(
        identity="sha256:model",
        revision=revision,
        variants={},
        num_train_timesteps=1000,
        single_file=None,
        elsewhere={},
        absent=frozenset(),
        identities={},
        family=family,
        objective=OBJECTIVES[family.objective],
        config=lambda component, name="config.json": (configs or {}).get(component, {}),
    )
    for method in (BaseModel.timesteps, BaseModel.timestep_sampling, BaseModel.describe_noise, BaseModel.check_task):
        setattr(base, method.__name__, partial(method, base))
    return base


def job_of(given=None, *, parent=None, base_revision=None, rows=10, held_out=None, family=SPEC, configs=None):
    task = parse_task((given or text()).encode(), source="test")
    return Job(
        task=task,
        base=base_of(family, base_revision, configs),
        dataset=Rows(rows),
        parent=parent,
        in_place=False,
        step_range=StepRange.of(task.train_args, num_rows=rows, processes=1, start_step=0),
        prediction_type="flow" if family.objective == "flow" else "epsilon",
        held_out=held_out,
    )


def before_of(base_model=None, revision="main"):
    """What an earlier start or the chain's parent found."""
    return {"base_model": base_model or {}, "dataset": {}, "revision": revision}


def text(**extra):
    required = {"model": {"name": "m"}, "dataset": {"name": "d"}, "validation": {}, "train_args": {}}
    return json.dumps(required | extra)
