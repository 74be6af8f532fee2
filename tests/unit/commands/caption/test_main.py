"""Captions for a folder, by a tiny random BLIP; never over what is there."""

import os

import pytest
import torch
from transformers import BertTokenizerFast as BertTokenizer
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

from engine.commands import caption
from engine.core.errors import DatasetError, ModelError
from engine.data.dataset.open import open_dataset
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.caption_folders import write
from tests.support.fakes import png

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(40))]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(vocab_file=str(folder / "vocab.txt"), vocab={w: k for k, w in enumerate(WORDS)})
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **small,
            "encoder_hidden_size": 32,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():  # as initialised it says the same of every image
            parameter.data.normal_(std=1.0)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    files = {f"sub/{k}.png": png(k, (40, 30)) for k in range(3)} | {"a.png": png(9), "b.jpg": b"broken"}
    return write(tmp_path / "images", files)


def run(folder, blip, *flags):
    return caption.main([str(folder), "--model", str(blip), "--device", "cpu", "--max-tokens", "8", *flags], {})


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_writes_a_caption_beside_each_image_and_nothing_over_another(folder, blip, capfd):
    write(folder, {"sub/0.txt": "by hand", "sub/1.caption": "", "notes.txt": "mine"})
    assert run(folder, blip) == 0
    found = texts(folder)
    assert sorted(found) == ["a.txt", "notes.txt", "sub/0.txt", "sub/2.txt"]
    assert found["sub/0.txt"] == "by hand" and found["notes.txt"] == "mine"
    assert found["a.txt"].startswith("word") and found["a.txt"].endswith("\n")
    said = capfd.readouterr().err
    assert "skipping image b.jpg" in said and "captioning: 3/3 images" in said and "wrote 2 captions" in said
    (folder / "b.jpg").unlink()
    before = texts(folder)
    assert run(folder, blip) == 0 and texts(folder) == before
    assert "nothing to do" in capfd.readouterr().err


def test_the_result_is_a_dataset_and_the_same_each_time(folder, blip, tmp_path):
    (folder / "b.jpg").unlink()
    assert run(folder, blip) == 0
    wanted = Dataset(name=str(folder))
    dataset = open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)
    assert dataset.caption_rules == {"a .txt file beside the image": 4}
    first = texts(folder)
    for name in first:
        (folder / name).unlink()
    assert run(folder, blip) == 0 and texts(folder) == first
    assert len(set(first.values())) > 1  # it looks at the image


def test_a_prompt_begins_every_caption(folder, blip):
    assert run(folder, blip, "--prompt", "word7 word8") == 0
    assert all(text.startswith("word7 word8") for text in texts(folder).values())


def test_a_caption_that_came_in_the_meantime_or_a_link_stays(folder, tmp_path):
    outside = write(tmp_path, {"outside.txt": "not ours"}) / "outside.txt"
    (folder / "a.txt").symlink_to(outside)
    assert caption.write_caption(folder / "a.png", "new") is False and outside.read_text() == "not ours"
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    assert caption.write_caption(folder / "a.png", "new") is False and not (tmp_path / "nowhere.txt").exists()
    assert caption.write_caption(folder / "sub/0.png", "grün") is True
    assert (folder / "sub/0.txt").read_bytes() == "grün\n".encode()


@pytest.mark.parametrize("name", ["no/such-captioner", "./nowhere"])
def test_a_model_that_is_not_at_hand_is_refused_clearly(folder, name, capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(folder, name) == ModelError.code
    said = capfd.readouterr().err
    assert f"captioner {name!r} cannot be loaded" in said and "--model" in said and "Traceback" not in said
    assert texts(folder) == {}


def test_a_model_that_is_no_captioner(folder, tmp_path, capfd):
    write(tmp_path / "bert", {"config.json": '{"model_type": "bert"}'})
    assert run(folder, tmp_path / "bert") == ModelError.code
    assert "is a 'bert'" in capfd.readouterr().err


def test_a_model_without_weights(folder, blip, tmp_path, capfd):
    bare = write(tmp_path / "bare", {path.name: path.read_bytes() for path in blip.iterdir() if path.suffix == ".json"})
    (bare / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert run(folder, bare) == ModelError.code
    assert "cannot be loaded" in capfd.readouterr().err


def test_folders_that_need_no_captions(tmp_path, blip):
    for name, files, message in (
        ("nothing", {"x.txt": ""}, "no images"),
        ("table", {"a.png": png(1), "metadata.jsonl": "{}"}, r"metadata\.jsonl already gives the captions"),
    ):
        with pytest.raises(DatasetError, match=message):
            caption.find_images(write(tmp_path / name, files))
    with pytest.raises(DatasetError, match="not a folder"):
        caption.find_images(tmp_path / "nowhere")
    assert run(tmp_path / "nowhere", blip) == DatasetError.code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(folder, blip):
    (folder / "sub").chmod(0o555)
    assert run(folder, blip) == 7
