"""Validation images and their prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.task.identity import canonical
from tests.support.tasks import MINIMAL, problems, read

ROOT = Path(__file__).parents[3]


def test_images_go_round_the_prompts():
    def prompts(**validation):
        given = read(MINIMAL | {"validation": validation}).validation.given_prompts
        return given and [row.prompt for row in given]

    assert prompts() is None and prompts(prompts=None, num_images=2) is None
    assert prompts(prompt="a", num_images=2) == ["a", "a"] and prompts(prompt="") == [""] * 4
    assert prompts(prompts=["a", "b", "c"]) == ["a", "b", "c", "a"]
    assert prompts(prompts=["a", "b", "c"], num_images=1) == ["a", "b", "c"]
    assert prompts(prompts=list("abcdef")) == list("abcdef")
    assert prompts(prompts=[""], num_images=1, prompt=None) == [""]


def test_one_prompt_or_several():
    both = {"prompt": "a", "prompts": ["b"], "num_images": 0}
    assert problems(MINIMAL | {"validation": both}) == [
        "validation.num_images: got 0, expected an integer of at least 1 and at most 10",
        'validation.prompt: got "a", expected null beside prompts',
    ]
    assert read(MINIMAL | {"validation": {"prompt": "a", "prompts": None}}).validation.prompts is None


@pytest.mark.parametrize(
    "value", [{"prompts": None}, {"guidance_scale": None}, {"num_inference_steps": None}, {"seed": None}]
)
def test_validation_at_its_defaults_is_no_other_task(value):
    assert canonical(read(MINIMAL | {"validation": value})) == canonical(read(MINIMAL))
