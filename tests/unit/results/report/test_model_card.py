"""The model card, read as the Hub's client reads it."""

import pytest
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import ModelCardData

from engine.results.report.model_card import ModelCard, render
from tests.unit.results.report.test_markdown import HOSTILE

COMMIT = "a" * 40


def card(**changes):
    values = {
        "noun": "a LoRA",
        "hub_id": "org/model",
        "identity": f"org/model@{COMMIT}",
        "relation": "adapter",
        "licence": "openrail++",
        "pipeline_tag": "text-to-image",
        "tags": ("lora", "template:sd-lora"),
        "trigger_word": "sks",
        "images": [{"file": "0.png", "prompt": "a cat", "seed": 3}, {"file": "1.png", "prompt": "a dog", "seed": 4}],
        "usage": "Load it.",
        "settings": [("train_args.learning_rate", "0.0001")],
        "global_step": 1200,
        "max_steps": 1200,
    }
    return HubCard(render(ModelCard(**values | changes)).decode())


def test_what_the_hub_reads():
    found = card()
    assert isinstance(found.data, ModelCardData)
    assert found.data.to_dict() == {
        "license": "openrail++",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "template:sd-lora"],
        "instance_prompt": "sks",
        "widget": [
            {"text": "a cat", "output": {"url": "validation/0.png"}},
            {"text": "a dog", "output": {"url": "validation/1.png"}},
        ],
    }
    assert "<Gallery />" in found.text and "# A LoRA for `org/model`" in found.text
    assert "Trained for 1,200 steps on" in found.text


def test_what_is_not_known_is_left_out():
    found = card(hub_id=None, identity="sha256:ab", licence=None, trigger_word=None, global_step=300)
    assert not {"license", "base_model", "base_model_relation", "instance_prompt"} & found.data.to_dict().keys()
    assert "# A LoRA\n" in found.text and "300 steps of 1,200" in found.text and "rigger" not in found.text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text):
    images = [{"file": "0.png", "prompt": text, "seed": 3}]
    found = card(trigger_word=text, images=images, settings=[(text, text)])
    plain = card(trigger_word="x", images=[images[0] | {"prompt": "x"}], settings=[("x", "x")])
    if text:
        assert found.data.to_dict().keys() == plain.data.to_dict().keys()
        assert found.text.count("\n") == plain.text.count("\n"), "a text has made lines of its own"
    outside_code = [part for k, part in enumerate(found.text.replace("``", "`").split("`")) if k % 2 == 0]
    assert not any("onerror" in part or "javascript" in part for part in outside_code)
