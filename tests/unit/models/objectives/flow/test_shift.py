"""Shifts of noise levels against those of Diffusers' pipelines and schedulers; malformed configurations."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from engine.core.errors import ModelError
from engine.models.objectives.flow.shift import Shift

LARGE = {"base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9}
DYNAMIC = {"use_dynamic_shifting": True}


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 9216])
@pytest.mark.parametrize("config", [DYNAMIC, DYNAMIC | LARGE, DYNAMIC | LARGE | {"time_shift_type": "linear"}])
def test_the_size_decides_as_in_the_pipelines(config, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    values = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[key] for key in values))
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    s = Shift.of(config, None).at(tokens)
    torch.testing.assert_close(s * levels / (1 + (s - 1) * levels), scheduler.time_shift(mu, 1.0, levels))


def test_the_task_decides_before_the_model():
    config = DYNAMIC | {"shift": 7.0}
    assert Shift.of({"shift": 3.0}, None).at(1024) == 3.0 == Shift.of(config, 3.0).at(4096)
    assert Shift.of({}, None).at(1) == 1.0
    assert Shift.of({"use_flow_sigmas": True, "flow_shift": 5.0, "shift": 2.0}, None).at(1) == 5.0
    assert Shift.of({"shift": 3.0}, "resolution") == Shift.of(config, None)
    assert math.isclose(Shift.of(config, None).at(4096), math.exp(1.15))


@pytest.mark.parametrize(
    "config",
    [
        {"shift": 0.0},
        {"shift": 1e-9},
        {"shift": -1.0},
        {"shift": math.nan},
        {"shift": math.inf},
        {"shift": 10**400},
        {"shift": "3.0"},
        {"shift": None},
        {"shift": True},
        {"use_dynamic_shifting": "yes"},
        {"use_flow_sigmas": True, "flow_shift": "3"},
        DYNAMIC | {"base_shift": math.nan},
        DYNAMIC | {"max_shift": 11.0},
        DYNAMIC | {"max_image_seq_len": 256},
        DYNAMIC | {"base_image_seq_len": -5},
        DYNAMIC | {"time_shift_type": "other"},
    ],
)
def test_malformed(config):
    with pytest.raises(ModelError, match="the base model's scheduler does not load: "):
        Shift.of(config, None)


@pytest.mark.parametrize("config, tokens", [({"max_image_seq_len": 257}, 300), ({"time_shift_type": "linear"}, 16)])
def test_a_size_for_which_there_is_none(config, tokens):
    shift = Shift.of(DYNAMIC | {"base_shift": -0.5} | config, None)
    with pytest.raises(ModelError, match=r"shift of .* for images of .* tokens: choose another train_args\.resolution"):
        shift.at(tokens)
