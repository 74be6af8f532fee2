"""The table of families: what a base model says it is, and what is said of the others."""

import pytest

from engine.core.errors import ModelError
from engine.models import registry


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_known(name):
    entry = registry.detect({"_class_name": name})
    assert entry is registry.FAMILIES[name]
    assert set(entry.weighted) <= set(entry.components)


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
