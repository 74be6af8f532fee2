"""Captions by image-text models that answer a prompt: tiny ones of random weights."""

import json

import pytest
import torch
from PIL import Image

from engine.commands.caption import image_text, pretrained, registry, source
from engine.commands.caption.captioner import Options
from engine.core.errors import DeviceError, ModelError
from engine.data.media.geometry import UnreadableImage
from tests.support.caption_folders import write
from tests.support.tiny_captioners import IMAGE, build_llava, build_qwen_vl

CPU = Options(device="cpu", max_tokens=8)
PICTURES = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB").resize((90, 40))]


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory):
    return build_qwen_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return build_llava(tmp_path_factory.mktemp("llava"))


def load(folder, options=CPU):
    return registry.load(source.find(str(folder), "main"), options)


def copied(folder, target):
    return write(target, {path.name: path.read_bytes() for path in folder.iterdir()})


def test_a_model_with_a_chat_template_answers_its_own_prompt_about_each_image(qwen_vl, monkeypatch):
    """Also where torchvision is not installed, which only its part for videos needs."""
    asked = []
    usual = image_text._inputs
    monkeypatch.setattr(image_text, "_inputs", lambda *given: asked.append(usual(*given)) or asked[-1])
    captioner = load(qwen_vl)
    first, second = map(captioner, PICTURES)
    assert first and second and first != second and captioner(PICTURES[0]) == first
    tokenizer = pretrained.load_pretrained(source.find(str(qwen_vl), "main"), device="cpu", on_cuda="auto").processor
    said = tokenizer.batch_decode(asked[0]["input_ids"])[0]
    num_tokens = asked[0]["image_grid_thw"].prod().item() // 4
    assert said == f"<|im_start|>user\n{IMAGE * num_tokens}{image_text.CHAT_PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert image_text.CHAT_PROMPT not in first  # the answer alone
    # Another prompt, another answer.
    assert load(qwen_vl, Options(device="cpu", max_tokens=8, prompt="Which colours?"))(PICTURES[0]) != first


def test_without_a_chat_template_the_prompt_is_in_the_models_own_format(llava):
    with pytest.raises(ModelError, match="no chat template: give --prompt in the format on its model card"):
        load(llava)
    captioner = load(llava, Options(device="cpu", max_tokens=8, prompt=f"USER: {IMAGE}\nWhat is it? ASSISTANT:"))
    first, second = map(captioner, PICTURES)
    assert first and first != second and "USER" not in first
    with pytest.raises(ModelError, match=r"fails \(.*use another --prompt"):
        load(llava, Options(device="cpu", prompt="no place for the image"))(PICTURES[0])


def test_large_images_are_reduced_and_mere_lines_refused(qwen_vl):
    assert image_text.reduced(Image.new("RGB", (4096, 2048))).size == (1024, 512)
    assert image_text.reduced(Image.new("RGB", (64, 48))).size == (64, 48)
    with pytest.raises(UnreadableImage, match="more than 100 times as long"):
        load(qwen_vl)(Image.new("RGB", (2020, 20)))


def test_weights_that_are_not_there_are_never_random_ones(qwen_vl, tmp_path):
    """As of repositories whose layout is another program's."""
    from safetensors.torch import load_file, save_file

    folder = copied(qwen_vl, tmp_path / "renamed")
    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="lacks weights that transformers' qwen2_5_vl has"):
        load(folder)


def test_code_of_a_repository_is_never_run_nor_asked_about(qwen_vl, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for consent"))
    code = {"modeling_mine.py": "raise SystemExit('run')"}
    folder = write(tmp_path / "mine", {"config.json": json.dumps({"model_type": "mine", "auto_map": AUTO_MAP}), **code})
    with pytest.raises(ModelError, match="is a 'mine': expected a tagger or a model of transformers"):
        load(folder)
    folder = copied(qwen_vl, tmp_path / "processor")
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config |= {"auto_map": AUTO_MAP, "processor_class": "Mine", "image_processor_type": "Mine"}
        write(folder, {name: json.dumps(config), **code})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


AUTO_MAP = {name: "modeling_mine.Mine" for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoImageProcessor")}


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_type": 7}', "[" * 100_000])
def test_a_damaged_config(tmp_path, config):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(write(tmp_path, {"config.json": config}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(qwen_vl):
    with pytest.raises(DeviceError, match="no GPU is visible"):
        load(qwen_vl, Options(device="cuda"))
