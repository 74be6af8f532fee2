"""Keys that have no effect, and those that have."""

from dataclasses import replace

import pytest

from engine.job.advice.describe import describe
from engine.job.advice.ineffective_keys import without_effect
from engine.models.families.sd.spec import SPEC
from engine.models.spec import DrawingDefaults
from tests.support.jobs import FLOW_SPEC, held_out_of, job_of, text

BOTH_DATASETS = {"name": "d", "url": "https://example.org/d"}
LONE_LIMIT = "checkpoint_limit has no effect without checkpoint_every_n_steps"


def train(**args):
    return {"train_args": args}


def scheduler(name, steps):
    return train(lr_scheduler={"lr_scheduler": name, "lr_warmup_steps": steps})


def bias(**options):
    return train(timestep_bias=options)


@pytest.mark.parametrize(
    "given, note",
    [
        ({"model": {"name": "m", "revision": "v2"}}, "model.revision has no effect: the base model is a local folder"),
        ({"dataset": BOTH_DATASETS}, "dataset.url has no effect beside dataset.name"),
        ({"dataset": {"url": "https://example.org/d"}}, None),
        (
            {"dataset": {"name": "d", "keep_tokens": 1}},
            "dataset.keep_tokens has no effect without dataset.shuffle_tags",
        ),
        ({"dataset": {"name": "d", "keep_tokens": 1, "shuffle_tags": True}}, None),
        (
            {"dataset": {"name": "d", "shuffle_tags": True, "caption_dropout": 1}},
            "dataset.shuffle_tags has no effect: caption_dropout 1 leaves every caption empty",
        ),
        ({"dataset": {"name": "d", "shuffle_tags": True, "caption_dropout": 0.9}}, None),
        (
            {"dataset": {"name": "d", "video_column": "film"}},
            "dataset.video_column has no effect: this model is trained on images, in dataset.image_column",
        ),
        ({"dataset": {"name": "d", "image_column": "picture"}}, None),
        (
            scheduler("constant", 100),
            "lr_warmup_steps has no effect with the lr_scheduler constant; constant_with_warmup has a warm-up",
        ),
        (scheduler("constant", 0), None),
        (scheduler("constant", 500), None),  # the default, which nobody need have asked for
        (scheduler("constant_with_warmup", 1), None),
        (
            train(num_train_steps=9, num_train_epochs=2),
            "train_args.num_train_epochs has no effect beside train_args.num_train_steps",
        ),
        (train(num_train_steps=9, max_train_epochs=2), None),
        (
            train(max_train_steps=9, max_train_epochs=2),
            "train_args.max_train_epochs has no effect beside train_args.max_train_steps",
        ),
        (
            train(text_encoder_learning_rate=1e-5),
            "train_args.text_encoder_learning_rate has no effect without train_args.train_text_encoder",
        ),
        (train(text_encoder_learning_rate=1e-5, train_text_encoder=True), None),
        (train(huber_c=0.2), "huber_schedule and huber_c have no effect with the loss_type l2"),
        (train(huber_c=0.2, loss_type="huber"), None),
        (bias(multiplier=2), "timestep_bias has no effect with the strategy none"),
        (
            bias(strategy="earlier", multiplier=2, begin=10),
            "timestep_bias.begin and end have no effect with the strategy earlier",
        ),
        (
            bias(strategy="range", multiplier=2, end=500, portion=0.5),
            "timestep_bias.portion has no effect with the strategy range",
        ),
        (bias(strategy="range", multiplier=2, begin=10, end=500), None),
        (bias(strategy="later", multiplier=2, portion=0.5), None),
        (
            bias(strategy="earlier"),
            "timestep_bias has no effect: all timesteps that are trained are drawn equally often",
        ),
        (
            bias(strategy="range", multiplier=2),
            "timestep_bias has no effect: all timesteps that are trained are drawn equally often",
        ),
        (
            {"validation": {"negative_prompt": "rain", "guidance_scale": 1}},
            "validation.negative_prompt has no effect at a guidance_scale of up to 1",
        ),
        ({"validation": {"negative_prompt": "rain"}}, None),
        (
            {"validation": {"prompts": ["a", {"prompt": "b", "negative_prompt": "rain", "guidance_scale": 1}]}},
            "validation.prompts[1], negative_prompt has no effect at a guidance_scale of up to 1",
        ),
        (
            {
                "validation": {
                    "negative_prompt": "rain",
                    "guidance_scale": 1,
                    "prompts": [{"prompt": "b", "guidance_scale": 2}, "a"],
                    "num_images": 2,
                }
            },
            None,
        ),
        (
            {"validation": {"every_n_steps": 2, "every_n_epochs": 1}},
            "validation.every_n_epochs has no effect beside validation.every_n_steps",
        ),
        ({"validation": {"every_n_epochs": 1}}, None),
        ({"lora": {"rank": 3}, "training_type": "full"}, "lora.rank has no effect with the training_type full"),
        ({"lora": {"rank": 3}}, None),
        ({"training_type": "full"}, None),
        (
            train(optimizer="lion", adam_args={"epsilon": 1e-6}),
            "adam_args.epsilon has no effect with the optimizer lion",
        ),
        (train(optimizer="lion", adam_args={"beta2": 0.99, "weight_decay": 0.1}), None),
        (
            train(optimizer="adafactor", adam_args={"beta1": 0.8}),
            "adam_args.beta1 has no effect with the optimizer adafactor",
        ),
        (train(optimizer="prodigy", adam_args={"epsilon": 1e-6}), None),
        ({"checkpoint_limit": 2}, LONE_LIMIT),
        ({"checkpoint_limit": 2, "checkpoint_every_n_steps": 1}, None),
    ],
)
def test_what_has_no_effect_is_noted(given, note):
    assert without_effect(job_of(text(**given))) == ([note] if note else [])


LOGITS = "logit_mean and logit_std have no effect with the timestep_sampling "
SCALE = "mode_scale has no effect with the timestep_sampling "


@pytest.mark.parametrize(
    "args, note",
    [
        ({"logit_mean": 0.5}, None),  # as is usual for the family
        ({"logit_mean": 0.5, "timestep_sampling": "uniform"}, f"{LOGITS}uniform"),
        ({"logit_std": 0.5, "timestep_sampling": "mode"}, f"{LOGITS}mode"),
        ({"mode_scale": 1.0}, f"{SCALE}logit_normal"),
        ({"mode_scale": 1.0, "timestep_sampling": "mode"}, None),
        (
            {"timestep_bias": {"strategy": "earlier"}},
            "timestep_bias has no effect: all timesteps that are trained are drawn equally often",
        ),
        ({"timestep_bias": {"strategy": "earlier", "multiplier": 2}}, None),
    ],
)
def test_of_flow_matching(args, note):
    job = job_of(text(train_args=args), family=FLOW_SPEC)
    assert without_effect(job) == ([note] if note else [])


def test_guidance_is_the_familys_where_the_task_gives_none():
    task = text(validation={"negative_prompt": "rain"})
    family = replace(FLOW_SPEC, drawing=DrawingDefaults(guidance_scale=1.0, num_inference_steps=4))
    assert without_effect(job_of(task, family=FLOW_SPEC)) == []
    assert without_effect(job_of(task, family=family)) == [
        "validation.negative_prompt has no effect at a guidance_scale of up to 1"
    ]
    assert without_effect(job_of(task, family=replace(family, no_guidance=0.0))) == []


def test_it_is_told_with_the_plan():
    assert f"note: {LONE_LIMIT}" in describe(job_of(text(checkpoint_limit=2)))


def test_the_column_of_images_has_no_effect_on_clips():
    job = job_of(
        text(dataset={"name": "d", "image_column": "x"}), family=replace(SPEC, medium="video", frame_rate=25.0)
    )
    assert without_effect(job) == [
        "dataset.image_column has no effect: this model is trained on clips, in dataset.video_column"
    ]


def test_a_model_from_the_hub_has_revisions():
    assert without_effect(job_of(text(model={"name": "m", "revision": "v2"}), base_revision="a" * 40)) == []


@pytest.mark.parametrize("source, noted", [({"fraction": 0.5}, True), ({"split": "x"}, True), ({"name": "x"}, False)])
def test_a_configuration_of_nothing_held_out(source, noted):
    job = job_of(text(validation={"dataset": {**source, "config_name": "c"}}), held_out=held_out_of())
    assert without_effect(job) == ["validation.dataset.config_name has no effect without name or url"] * noted
