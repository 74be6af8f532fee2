"""Which schedulers and which keys of a task go with flow matching."""

import dataclasses

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.flow.spec import EULER, FLOW, WITH_FLOW_SIGMAS
from engine.task.task import TrainArgs

UNIPC = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
EULERS = {"_class_name": EULER, "shift": 3.0}


@pytest.mark.parametrize(
    "config",
    [
        EULERS,
        EULERS | {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        *({"_class_name": name, "use_flow_sigmas": True, "flow_shift": 3.0} for name in WITH_FLOW_SIGMAS),
        UNIPC,
    ],
)
def test_schedulers_of_flow_matching(config):
    assert FLOW.check(config) == [] and FLOW.num_train_timesteps(config) == 1000
    assert FLOW.prediction_type(config) == "flow"


def test_a_scheduler_without_its_package_is_told():
    (note,) = FLOW.check(EULERS | {"use_beta_sigmas": True})
    assert note.startswith("note: the base model's scheduler has use_beta_sigmas")


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "'None' is not one of flow matching"),
        ({"_class_name": ["x"]}, "is not one of flow matching"),
        ({"_class_name": "DDIMScheduler", "use_flow_sigmas": True}, "'DDIMScheduler' is not one of flow matching"),
        ({"_class_name": "UniPCMultistepScheduler"}, "'UniPCMultistepScheduler' is not one of flow matching"),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "epsilon"},
            "is not one of flow matching",
        ),
        (EULERS | {"invert_sigmas": True}, "has invert_sigmas"),
        (EULERS | {"shift_terminal": 1.0}, "shift_terminal is '1.0'"),
        (EULERS | {"shift_terminal": "0.1"}, "shift_terminal is '0.1'"),
        (EULERS | {"shift": "3"}, "shift is '3'"),
        (UNIPC | {"use_dynamic_shifting": True, "time_shift_type": "linear"}, "time_shift_type is 'linear'"),
        (EULERS | {"base_shift": [1]}, r"base_shift is '\[1\]'"),  # which the pipelines read, whatever is shifted
    ],
)
def test_other_schedulers_are_refused(config, message):
    with pytest.raises(ModelError, match=message):
        FLOW.check(config)


@pytest.mark.parametrize("number", [0, -1, 10_001, 1000.0, "1000", None, True])
def test_malformed_numbers_of_timesteps(number):
    with pytest.raises(ModelError, match="num_train_timesteps is"):
        FLOW.num_train_timesteps(EULERS | {"num_train_timesteps": number})


@pytest.mark.parametrize(
    "given",
    [{"prediction_type": "epsilon"}, {"snr_gamma": 5.0}, {"zero_terminal_snr": True}, {"noise_offset": 0.1}],
)
def test_keys_of_diffusion_are_refused_with_the_familys_name(given):
    (key,) = given
    with pytest.raises(TaskError, match=rf"train_args\.{key} has no meaning for APipeline, .*; remove this key"):
        FLOW.check_task(TrainArgs(**given), "flow", "APipeline", {})


def test_other_keys_are_allowed():
    args = TrainArgs(
        loss_type="huber", timestep_sampling="mode", flow_shift=2.0, guidance_scale=3.5, min_timestep=3, ema_decay=0.9
    )
    FLOW.check_task(args, "flow", "APipeline", {})


def test_the_shift_is_described_at_the_tasks_resolution():
    dynamic, args = EULERS | {"use_dynamic_shifting": True}, TrainArgs(resolution=1024)
    told = FLOW.describe_noise
    assert told(EULERS, args, 4096) == "shift 3, as the base model's scheduler says"
    assert told(dynamic, args, 4096) == "shift 3.158 at 1024 x 1024 pixels, as the base model's scheduler says"
    assert told(EULERS, dataclasses.replace(args, flow_shift="resolution"), 4096) == "shift 3.158 at 1024 x 1024 pixels"
    assert told(dynamic, dataclasses.replace(args, flow_shift=2.0), 4096) == "shift 2"


def test_a_size_that_cannot_be_drawn_is_refused_whatever_is_trained():
    config = EULERS | {"use_dynamic_shifting": True, "base_image_seq_len": 255, "max_image_seq_len": 256}
    args = dataclasses.replace(TrainArgs(), flow_shift=2.0)
    assert FLOW.describe_noise(config, args, 255)
    with pytest.raises(ModelError, match="for images of 4,096 tokens: choose another"):
        FLOW.describe_noise(config, args, 4096)
