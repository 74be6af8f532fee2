"""The Python in a model card, run word for word: it draws what the training drew."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from engine.core import rng
from engine.models import registry as families
from engine.models.family import Drawing, LoadArgs
from engine.models.single_file import SingleFile
from engine.task.task import Lora
from engine.training.methods import registry
from engine.training.methods.registry import METHODS
from engine.training.methods.usage import class_of, diffusers, hub_id
from tests.support import tiny
from tests.support.abouts import COMMIT, about_of, base_of, task_of
from tests.support.fakes import CPU
from tests.support.tiny_flux2_klein import build_flux2_klein
from tests.support.tiny_qwen_image import build_qwen_image
from tests.support.tiny_sd3 import build_sd3

IMAGE = {"file": "0.png", "prompt": "a 'cat' \"```\n", "seed": 5, "num_inference_steps": 3, "negative_prompt": "a dog"}
BUILDERS = {
    "sd": tiny.build_sd,
    "xl": tiny.build_sdxl,
    "sd3 without T5": partial(build_sd3, with_t5=False),
    "qwen_image": build_qwen_image,
    "flux2_klein": build_flux2_klein,
}
CHANGES = {"qwen_image": 0.2, "flux2_klein": 0.2, "lokr": 0.1}
"""How much weights are changed where 0.01 would hardly be seen: by family, or by method."""
SIZE = 64
QUICK = {("lora", "sd"), ("full", "xl")}
CASES = [
    pytest.param(method, kind, marks=() if (method, kind) in QUICK else pytest.mark.slow)
    for method in METHODS
    for kind in BUILDERS
]


def python_in(text):
    (code,) = re.findall(r"^(?P<fence>`{3,})python\n(.*?)\n(?P=fence)$", text, re.MULTILINE | re.DOTALL)
    return code[1]


@pytest.mark.parametrize("method, kind", CASES)
def test_it_draws_the_validation_image(tmp_path, monkeypatch, method, kind):
    folder, published = BUILDERS[kind](tmp_path / "base"), tmp_path / "published"
    spec = families.detect(json.loads((folder / "model_index.json").read_text()))
    args = {"resolution": SIZE, "train_text_encoder": bool(spec.text_encoders) and method != "lokr"}
    task = task_of(training_type=method, lora=Lora(rank=2), train_args=args)
    absent = frozenset(name for name in spec.optional if not (folder / name).exists())
    args = LoadArgs(
        folder=folder,
        absent=absent,
        variants=dict.fromkeys(spec.weighted),
        dtype=torch.float32,
        float32=frozenset(METHODS[method].trained_weights(spec, task)),
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=spec.caption_tokens.of(task.dataset),
    )
    family = families.load(spec, args)
    trainable = registry.attach(family, task, CPU, start=None, warm_start=None)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(
                max(CHANGES.get(kind, 0.01), CHANGES.get(method, 0.01))
                * torch.linspace(-1, 2, parameter.numel()).reshape(parameter.shape)
            )
    trainable.refresh()
    config = lambda component: json.loads((folder / component / "config.json").read_text())  # noqa: E731
    about = about_of(base_of("sha256:0", spec=spec, config=config, absent=absent), task)
    for name, content in trainable.export(about).items():
        (published / name).parent.mkdir(exist_ok=True, parents=True)
        (published / name).write_bytes(content if isinstance(content, bytes) else b"".join(content()))
    code = python_in(METHODS[method].usage(about, IMAGE))
    for placeholder, path in (("path/to/the/base/model", folder), ("path/to/this/folder", published)):
        assert code.count(placeholder) == 1
        code = code.replace(placeholder, str(path))

    monkeypatch.chdir(tmp_path)
    exec(code, {})
    with Image.open(tmp_path / "image.png") as image:
        found = np.asarray(image, np.int16)
    drawing = Drawing(
        prompt=IMAGE["prompt"],
        negative_prompt="a dog",
        guidance_scale=spec.drawing.guidance_scale,
        num_inference_steps=3,
        size=(SIZE, SIZE),
    )
    drawn = {True: family.draw(drawing, rng.torch_generator(5), lambda: None)[0]}
    with trainable.baseline():
        drawn[False] = family.draw(drawing, rng.torch_generator(5), lambda: None)[0]
    apart = {trained: np.abs(found - image.astype(np.int16)).max() for trained, image in drawn.items()}
    assert apart[True] <= 1 < apart[False]


def test_a_base_model_on_the_hub():
    base = base_of(variants={"unet": "fp16", "vae": "fp16"})
    code = python_in(diffusers(about_of(base), IMAGE))
    assert hub_id(base) == "org/model" and "base = 'org/model'" in code
    assert "from_pretrained(base, variant='fp16', dtype=torch.float32)" in code
    assert hub_id(base_of("sha256:0")) is None


def test_a_base_model_in_one_file():
    base = base_of("sha256:0", single_file=SingleFile)
    assert "StableDiffusionPipeline.from_single_file(base, " in python_in(diffusers(about_of(base), IMAGE))


@pytest.mark.parametrize(
    "config, found",
    [
        ({"_class_name": "UNet2DConditionModel"}, ("diffusers", "UNet2DConditionModel")),
        ({"architectures": ["CLIPTextModel"]}, ("transformers", "CLIPTextModel")),
        ({"_class_name": "x\nimport os"}, ("diffusers", "AutoModel")),
        ({}, ("transformers", "AutoModel")),
    ],
)
def test_a_configuration_names_no_more_than_a_class(config, found):
    assert class_of(base_of(configs={"unet": config}), "unet") == found


def test_the_base_models_commit_is_in_its_identity():
    assert hub_id(base_of(f"a@b/c@{COMMIT}", revision=COMMIT)) == "a@b/c"
