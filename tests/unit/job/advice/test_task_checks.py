"""Keys of a task that do not go with its base model are refused before weights are loaded."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.core.errors import ModelError, TaskError
from engine.job.advice.task_checks import check_frozen, check_noise, check_sizes
from engine.models.families.sd.spec import SPEC
from engine.task.task import parse_task
from tests.support.jobs import FLOW_SPEC, job_of, text

FLOW_KEYS = {
    "timestep_sampling": "uniform",
    "logit_mean": 0.5,
    "logit_std": 0.5,
    "mode_scale": 1.0,
    "flow_shift": 3.0,
}


@pytest.mark.parametrize(("buckets", "longest"), [(False, 256), (True, 512)])
def test_the_family_sees_each_size_before_anything_is_trained(buckets, longest):
    seen = []
    family = replace(SPEC, check_size=lambda config, extent: seen.append(extent.size))
    given = {"train_args": {"resolution": 256}, "transforms": {"buckets": buckets}}
    task = parse_task(text(**given).encode(), source="test")
    check_sizes(SimpleNamespace(family=family, config=None), task)
    assert (256, 256) in seen and max(max(size) for size in seen) == longest


@pytest.mark.parametrize(
    "args, family, message",
    [
        ({"snr_gamma": 5.0}, FLOW_SPEC, r"snr_gamma has no meaning for FlowPipeline, .* flow matching"),
        ({"prediction_type": "epsilon"}, FLOW_SPEC, "prediction_type has no meaning for FlowPipeline"),
        ({"guidance_scale": 3.5}, FLOW_SPEC, "guidance_scale is 3.5: this FlowPipeline is not distilled on guidance"),
        ({"guidance_scale": 3.5}, SPEC, "guidance_scale is 3.5: this StableDiffusionPipeline is not distilled"),
        *(
            ({key: value}, SPEC, f"{key} is for models that are trained by flow matching, .* StableDiffusionPipeline")
            for key, value in FLOW_KEYS.items()
        ),
        (
            {"max_timestep": 10, "logit_mean": -10, "logit_std": 0.01},
            FLOW_SPEC,
            "timestep_sampling logit_normal: none of the timesteps from 0 to below 10 is ever drawn",
        ),
    ],
)
def test_keys_that_do_not_go_with_the_model_are_refused(args, family, message):
    job = job_of(text(train_args=args), family=family)
    job = replace(job, prediction_type=args.get("prediction_type", job.prediction_type))
    with pytest.raises(TaskError, match=message):
        check_noise(job)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"training_type": "full"}, "model.quantization is 'nf4': training_type 'full' trains the weights themselves"),
        ({"lora": {"init_lora_weights": "loftq"}}, "'loftq' quantises the original weights itself; use only one"),
    ],
)
def test_quantised_weights_where_the_original_ones_are_needed(keys, message):
    with pytest.raises(TaskError, match=message):
        check_frozen(job_of(text(model={"name": "m", "quantization": "nf4"}, **keys)))


@pytest.mark.parametrize(
    "args, keys, message",
    [
        ({}, {}, "offload is true: the denoiser of a StableDiffusionPipeline has no blocks that can be copied"),
        (
            {"gradient_checkpointing": False},
            {"family": FLOW_SPEC},
            "needs gradient checkpointing; remove train_args",
        ),
        (
            {},
            {"family": FLOW_SPEC, "training_type": "full"},
            "offload is true: training_type 'full' trains",
        ),
    ],
)
def test_blocks_that_cannot_be_offloaded(args, keys, message):
    family = replace(keys.pop("family"), block_lists=("blocks",)) if "family" in keys else SPEC
    with pytest.raises(TaskError, match=message):
        check_frozen(job_of(text(train_args={"offload": True, **args}, **keys), family=family))


def test_guidance_for_a_model_that_is_told_it():
    configs = {"transformer": {"guidance_embeds": True}}
    check_noise(job_of(text(train_args={"guidance_scale": 3.5}), family=FLOW_SPEC, configs=configs))


VIDEO = replace(SPEC, medium="video", frame_step=8, frame_rate=25.0)


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        (SPEC, {"train_args": {"num_frames": 9}}, "train_args.num_frames is 9: a StableDiffusionPipeline makes images"),
        (SPEC, {"dataset": {"frame_rate": 25}}, "dataset.frame_rate: it is for video models"),
        (SPEC, {"dataset": {"frame_extraction": "chunk"}}, "dataset.frame_extraction: it is for video models"),
        (VIDEO, {"train_args": {"num_frames": 16}}, "takes 8k + 1 frames, such as 9 or 17"),
        (VIDEO, {"dataset": {"mask_column": "mask"}}, "dataset.mask_column: masks are for image models"),
        (VIDEO, {"dataset": {"alpha_mask": True}}, "dataset.alpha_mask: masks are for image models"),
    ],
)
def test_keys_of_the_other_kind_of_models_are_refused(family, given, message):
    given = {**given, "dataset": {"name": "d", **given.get("dataset", {})}}
    with pytest.raises(TaskError, match=re.escape(message)):
        check_sizes(job_of(family=family).base, parse_task(text(**given).encode(), source="test"))


def test_a_shift_that_the_scheduler_does_not_give():
    configs = {"scheduler": {"use_dynamic_shifting": True, "max_image_seq_len": 257}}
    with pytest.raises(ModelError, match="gives a shift of"):
        check_noise(job_of(text(train_args={"resolution": 1024}), family=FLOW_SPEC, configs=configs))
