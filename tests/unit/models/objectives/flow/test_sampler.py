"""The scheduler that draws validation images."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from engine.core.errors import ModelError
from engine.models.family import LoadArgs
from engine.models.objectives import registry
from engine.models.objectives.flow.sampler import load_scheduler


@pytest.fixture
def args(tmp_path):
    (tmp_path / "scheduler").mkdir()

    def write(config, **changes):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        return LoadArgs(
            folder=tmp_path,
            variants={},
            dtype=torch.float32,
            device=torch.device("cpu"),
            prediction_type="flow",
            caption_tokens=1,
            **changes,
        )

    return write


def test_it_is_the_models_own_whatever_the_tasks_shift(args):
    own = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "shift_terminal": 0.02}
    given = args(own, flow_shift=7.0)
    found = load_scheduler(given)
    assert isinstance(found, FlowMatchEulerDiscreteScheduler)
    assert (found.shift, found.config.shift_terminal) == (3, 0.02)
    assert registry.scheduler_config("flow", given).items() >= own.items()


def test_of_several_steps(args):
    own = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0}
    found = load_scheduler(args(own | {"prediction_type": "flow_prediction"}))
    assert isinstance(found, UniPCMultistepScheduler) and found.config.flow_shift == 3


def test_beta_sigmas_need_a_package_and_are_left_out(args):
    found = load_scheduler(args({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True}))
    assert found.config.use_beta_sigmas is False


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True, "use_exponential_sigmas": True},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "beta_schedule": "other"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": "1000"},
    ],
)
def test_malformed(args, config):
    with pytest.raises(ModelError, match="the base model's scheduler does not load: "):
        load_scheduler(args(config))


UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, range(1, 1000)),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1}, range(2, 1000)),
        (UNIPC | {"flow_shift": 3.0}, range(1, 334)),
        (UNIPC | {"flow_shift": 8.0, "shift_terminal": 0.1}, range(2, 113)),
        (UNIPC | {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 8.0}, range(1, 125)),
    ],
)
def test_it_draws_in_the_fewest_and_the_most_steps_that_are_named(args, config, steps):
    assert registry.OBJECTIVES["flow"].drawing_steps(config) == steps
    for count in (steps.start, steps.stop - 1):
        assert draw(load_scheduler(args(config)), count).isfinite().all()


def draw(scheduler, count):
    scheduler.set_timesteps(count)
    sample = torch.ones(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(sample / 10, timestep, sample).prev_sample
    return sample
