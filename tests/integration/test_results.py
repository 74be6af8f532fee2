"""What a job leaves behind is what it says: files that other programs load, images that can be drawn again, reports."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import zipfile
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load as parse_tensors
from safetensors.torch import load_file

from tests.support.harness import assert_same, changed, folder_bytes, read_json, run_chain, serving, succeed
from tests.support.pipelines import in_own_memory, one_thread

HARMLESS = "No LoRA keys associated to CLIPTextModel"
"""Diffusers says so of every file that adapts the UNet alone."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


class Records(logging.Handler):
    """Collects what libraries complain about."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        if not record.getMessage().startswith(HARMLESS):
            self.lines.append(record.getMessage())


@pytest.fixture
def complaints():
    handler, loggers = Records(), [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def plain_pipeline(model):
    """Diffusers alone, as a user of the LoRA would call it."""
    return in_own_memory(DiffusionPipeline.from_pretrained(model))


def draw(pipe, row, side=64):
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    options = {"num_inference_steps": 30, "guidance_scale": 7.5} | row
    del options["file"], options["seed"]
    picture = pipe(**options, height=side, width=side, generator=generator).images[0]
    return np.asarray(picture).astype(int)


@pytest.fixture(scope="module", params=["sd", "xl"])
def base(request, model, xl_model):
    """A base model of each family."""
    return {"sd": model, "xl": xl_model}[request.param]


@pytest.fixture(scope="module")
def strong(task, base, tmp_path_factory):
    """A LoRA that changes images visibly, of all kinds of layers and the text encoders, with several validation images.

    A power of two as its strength: multiplied in training or folded into the file, the bits are the same.
    """
    changes = {
        "model.name": str(base),
        "train_args.learning_rate": 3e-2,
        "train_args.lr_scheduler": {"lr_scheduler": "constant"},
        "lora.target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2"],
        "lora.rank": 16,
        "lora.alpha": 8,
        "lora.dropout": 0.1,
        "train_args.train_text_encoder": True,
        "train_args.text_encoder_learning_rate": 3e-3,
        **{"validation.num_images": 3, "validation.num_inference_steps": 30},
    }
    return succeed(changed(task, changes), tmp_path_factory.mktemp("strong") / "out")


def rows(finished):
    return read_json(finished.out / "validation" / "prompts.json")


def adapter_of(module):
    """The one adapter that Diffusers has attached."""
    (name,) = module.peft_config
    return get_peft_model_state_dict(module, adapter_name=name)


@pytest.fixture(scope="module")
def bare(strong, base):
    """The first image without the LoRA."""
    return draw(plain_pipeline(base), rows(strong)[0])


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "lora_webui.safetensors"])
def test_files_load_in_diffusers(strong, base, bare, complaints, name):
    """Every key is used, and no other is missed; the images are those of `validation/`, to the last bit."""
    pipe = plain_pipeline(base)
    pipe.load_lora_weights(str(strong.out / "checkpoint"), weight_name=name)
    assert complaints == []
    attached = {
        f"{component}.{key}": tensor
        for component in ("unet", "text_encoder", "text_encoder_2")
        if hasattr(pipe, component)
        for key, tensor in adapter_of(getattr(pipe, component)).items()
    }
    file = load_file(strong.out / "checkpoint" / "pytorch_lora_weights.safetensors")
    assert {key.replace("text_encoder.text_model.", "text_encoder.") for key in file} == attached.keys()
    for key, tensor in file.items():
        assert torch.equal(attached[key.replace("text_encoder.text_model.", "text_encoder.")], tensor), key
    for row in rows(strong):
        assert row.keys() == {"file", "prompt", "seed"}, "drawn with the defaults"
    # Two files of the same tensors: the second need not draw all of it again.
    for row in rows(strong) if name.startswith("pytorch") else rows(strong)[:1]:
        with Image.open(strong.out / "validation" / row["file"]) as picture:
            drawn = np.asarray(picture).astype(int)
        again = draw(pipe, row)
        assert np.array_equal(again, drawn), f"{row['file']}: off by {np.abs(again - drawn).max()}"
        if row == rows(strong)[0]:
            assert np.abs(again - bare).max() > 8


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_images_by_options_of_their_own(task, base, tmp_path):
    """Those that Diffusers draws; the ones without the LoRA follow when an option changes in mid-chain."""
    options = {"prompts": ["a red square", "an old map"], "num_images": 3, "negative_prompt": "blue", "seed": 5}
    own = changed(task, {"model.name": str(base), "validation": {**options, "num_inference_steps": 4}})
    own = changed(own, {"train_args.learning_rate": 3e-2, "train_args.max_train_steps": 2})
    scales = [3.0, 6.0]
    chain = run_chain(own, tmp_path, [1, 1], changes=lambda index: {"validation.guidance_scale": scales[index]})
    shared = {"negative_prompt": "blue", "num_inference_steps": 4}
    prompts = ["a red square", "an old map", "a red square"]
    bare = plain_pipeline(base)
    for slice_, scale in zip(chain, scales, strict=True):
        assert rows(slice_) == [
            {"file": f"{k}.png", "prompt": prompt, "seed": 5 + k, "guidance_scale": scale, **shared}
            for k, prompt in enumerate(prompts)
        ]
        pipe = plain_pipeline(base)
        pipe.load_lora_weights(str(slice_.out / "checkpoint"))
        for row in rows(slice_):
            assert np.array_equal(draw(pipe, row), pixels(slice_.out / "validation" / row["file"]))
            assert np.array_equal(draw(bare, row), pixels(slice_.out / "checkpoint" / f"without-{row['file']}"))


def test_files_of_every_kind_load(whole, model, complaints):
    """The default: attention alone, by the short way to load it."""
    pipe = plain_pipeline(model)
    pipe.load_lora_weights(str(whole.out / "checkpoint"))
    assert complaints == []


def test_prompts(strong, task):
    """Captions of the dataset, a seed each, a file each."""
    captions = {
        caption
        for line in (Path(task["dataset"]["name"]) / "metadata.jsonl").read_text().splitlines()
        for caption in json.loads(line)["text"]
    }
    listing = rows(strong)
    assert [row["file"] for row in listing] == ["0.png", "1.png", "2.png"]
    assert {row["prompt"] for row in listing} <= captions
    assert len({row["seed"] for row in listing}) == 3
    with Image.open(strong.out / "validation" / "0.png") as picture:
        assert picture.size == (64, 64)


def test_plan(task, base, tmp_path):
    plan = succeed(changed(task, {"model.name": str(base)}), tmp_path / "out", "--plan")
    assert "steps 0 to 10 of 10" in plan.stdout
    assert str(base) in plan.stdout
    assert not (tmp_path / "out").exists()


def test_a_given_prompt(short_task, tmp_path):
    given = changed(short_task, {"validation": {"prompt": "a tulip – in ink", "num_images": 2}})
    listing = rows(succeed(given, tmp_path / "out"))
    assert [row["prompt"] for row in listing] == ["a tulip – in ink"] * 2
    assert listing[0]["seed"] != listing[1]["seed"]


def test_no_pickles(strong, scratch):
    """Each file is what its name says, and nothing in it or in the cache is code."""
    looks = {
        ".safetensors": lambda data: parse_tensors(data) != {},
        ".json": lambda data: json.loads(data) is not None,
        ".jsonl": lambda data: [json.loads(line) for line in data.splitlines()] != [],
        ".md": lambda data: data.startswith(b"---\n"),
        ".txt": lambda data: data.strip().isdigit(),
        ".png": lambda data: data.startswith(b"\x89PNG"),
        ".html": lambda data: data.startswith(b"<!doctype html>"),
        "": lambda data: data == b"",
    }
    for name, data in folder_bytes(strong.out).items():
        assert looks[PurePath(name).suffix](data), name
    for folder in (strong.out, scratch / "cache"):
        for name, data in folder_bytes(folder).items():
            assert not any(word in data for word in (b"torch._utils", b"numpy.core", b"_reconstruct")), name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_results_belong_to_the_owner_of_the_folder(short_task, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 1234, 2345)
    succeed(short_task, out)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in out.rglob("*")}
    assert owners == {(1234, 2345)}


def _zipped(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in folder_bytes(folder).items():
            archive.writestr(f"wrapped/{name}", data)
        archive.writestr("__MACOSX/._0000.png", b"junk")
    return buffer.getvalue()


def _tarred(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in folder_bytes(folder).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    listing = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    images = [{"bytes": (folder / row["file_name"]).read_bytes(), "path": row["file_name"]} for row in listing]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "text": [row["text"] for row in listing]}), buffer)
    return buffer.getvalue()


PACKERS = {"zip": _zipped, "tar.gz": _tarred, "parquet": _parquet}


def test_datasets_by_url(task, whole, dataset, tmp_path):
    """Without an extension: the content decides. Asked for once; the LoRA is that of the same images in a folder."""
    bodies = {f"/{index}Qm": pack(dataset) for index, pack in enumerate(PACKERS.values())}
    env = {"ALLOW_PRIVATE_URLS": "1", "CACHE_DIR": str(tmp_path / "cache")}
    with serving(bodies) as (address, asked):
        for path in bodies:
            remote = changed(task, {"dataset": {"url": address + path}})
            for _ in range(2):
                plan = succeed(remote, tmp_path / "out", "--plan", env=env)
                assert "8 images" in plan.stdout
                assert asked == [path]
            # The content is that of the folder: a chain may go on with it.
            resume = ("--plan", "--checkpoint", whole.out / "checkpoint")
            succeed(remote, tmp_path / "out", *resume, env=env)
            asked.clear()
        trained = succeed(remote, tmp_path / "out", env=env)
        assert asked == []
    assert_same(trained.weights(), whole.weights())


def test_a_dataset_by_name_wins(task, tmp_path):
    both = changed(task, {"dataset.url": "http://127.0.0.1:9/nothing"})
    assert "8 images" in succeed(both, tmp_path / "out", "--plan").stdout


def test_images_without_the_training_are_drawn_once_for_all_trainings_on_a_model(short_task, tmp_path):
    """Another training with the same prompts and seeds takes them from the cache; its result is that of one without."""
    cache = {"CACHE_DIR": str(tmp_path / "cache")}
    other = changed(short_task, {"train_args.learning_rate": 1e-5})
    first = succeed(short_task, tmp_path / "first", env=cache)
    second = succeed(other, tmp_path / "second", env=cache)
    alone = succeed(other, tmp_path / "alone", env={"MAX_ENCODED_BYTES": "0"})
    drew = ["validation without the LoRA" in one.stderr for one in (first, second, alone)]
    assert drew == [True, False, True]
    assert_same(second.folders(), alone.folders())
