"""The table of families: what a base model says it is, and what is said of the others."""

from dataclasses import replace

import pytest
import torch

from engine.core.errors import ModelError
from engine.data.media.registry import MEDIA
from engine.models import registry
from engine.models.family import LoadArgs
from engine.task.task import Dataset
from tests.support import toy_family


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_known(name):
    entry = registry.detect({"_class_name": name})
    assert entry is registry.FAMILIES[name]
    assert set(entry.weighted) <= set(entry.components)
    assert entry.has_frames == MEDIA[entry.medium].make(Dataset()).has_frames


def test_no_family_refuses_the_pipeline_of_another_one():
    assert not registry.FAMILIES.keys() & {name for spec in registry.FAMILIES.values() for name in spec.other_pipelines}


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "StableDiffusionXLImg2ImgPipeline",
            r"'StableDiffusionXLImg2ImgPipeline' \(the refiner of Stable Diffusion XL, or .*image-to-image",
        ),
        ("StableDiffusionInpaintPipeline", r"'StableDiffusionInpaintPipeline' \(an inpainting model\)"),
        ("FluxKontextPipeline", r"\(FLUX.1 Kontext, an image-editing model\); this program trains"),
        (None, "a None; this program"),
        (["StableDiffusionPipeline"], "this program"),
        ({}, "this program"),
    ],
)
def test_others_are_refused_by_their_names(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        registry.detect({"_class_name": name})
    assert caught.value.code == 4


def test_a_loaded_family_has_the_row_for_this_model(tmp_path):
    """Caches tell captions' lengths apart by what is usual in the row."""
    args = LoadArgs(
        folder=toy_family.build_toy(tmp_path),
        variants=dict.fromkeys(toy_family.SPEC.weighted),
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="epsilon",
        caption_tokens=6,
    )
    refined = replace(toy_family.SPEC, caption_tokens=replace(toy_family.SPEC.caption_tokens, usual=6))
    assert registry.load(refined, args).spec is refined
    assert registry.load(toy_family.SPEC, args).spec is toy_family.SPEC
