"""A job's model card: what of the job is in it, and what must not be."""

from dataclasses import replace

import pytest

from engine.job.hub.card import model_card_of
from engine.models.families.sd.spec import SPEC
from engine.task.plan.steps import StepRange
from tests.support.abouts import COMMIT, about_of
from tests.support.jobs import job_of, text

IMAGES = [{"file": "0.png", "prompt": "a cat", "seed": 3}]


def card(args=None, *, processes=1, identity="sha256:ab", revision=None, **extra):
    job = job_of(text(train_args={"batch_size": 2, "max_train_steps": 20, **(args or {})}, **extra))
    job.base.identity, job.base.revision = identity, revision
    step_range = StepRange.of(job.task.train_args, num_rows=10, processes=processes, start_step=0)
    job = replace(job, step_range=step_range)
    micro_batches = step_range.micro_batches
    about = about_of(job.base, job.task, micro_batches=micro_batches, max_steps=step_range.max_steps)
    return model_card_of(job, about, IMAGES).decode()


def test_the_settings():
    found = card({"learning_rate": 1e-3}, lora={"rank": 4}, dataset={"name": "d", "trigger_word": "sks"})
    for row in ("| `images in a step` | `2` |", "| `learning rate` | `0.002` |", "| `rank` | `4` |"):
        assert row in found
    assert "| `train_args.learning_rate` | `0.001` |" in found and 'instance_prompt: "sks"' in found


def test_a_card_of_a_video_model_says_clips():
    job = job_of(text(train_args={"num_frames": 9}), family=replace(SPEC, medium="video"))
    clip = {"file": "0.mp4", "prompt": "a cat", "seed": 3, "num_frames": 9, "frame_rate": 8.0}
    found = model_card_of(job, about_of(job.base, job.task), [clip]).decode()
    assert "`clips in a step`" in found and "## Clips\n\n| clip | prompt | seed |" in found
    assert "frames = pipe(" in found and 'export_to_video(frames, "clip.mp4", fps=8)  # needs: pip install' in found


def test_a_model_on_the_hub_has_its_licence():
    name = "runwayml/stable-diffusion-v1-5"
    found = card(identity=f"{name}@{COMMIT}", revision=COMMIT)
    assert f'base_model: "{name}"' in found and 'license: "creativeml-openrail-m"' in found
    assert f"base = '{name}'" in found


@pytest.mark.parametrize(
    "args, processes",
    [({"num_train_steps": 3}, 1), ({"num_train_epochs": 7}, 1), ({"gradient_accumulation_steps": 3}, 2)],
)
def test_how_the_training_is_cut_and_shared_changes_nothing(args, processes):
    same = {"gradient_accumulation_steps": 6} if processes > 1 else {}
    assert card(args, processes=processes) == card(same)
    assert card(args, processes=processes) != card({"max_train_steps": 21})


def test_no_path_and_no_secret():
    found = card(
        model={"name": "/home/someone/models/mine"},
        dataset={"url": "https://user:password@example.org/data?signature=secret"},
    )
    assert not any(word in found for word in ("/home", "someone", "password", "signature", "secret"))
    assert "https://example.org/data?…" in found
