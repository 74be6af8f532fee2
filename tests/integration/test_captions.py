"""Captions beyond one row of tokens (`dataset.max_caption_tokens`), through the whole program."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.support.harness import assert_same, changed, run_chain, run_job, slice_environment, succeed, together
from tests.support.tiny import build_dataset

LIMIT = "dataset.max_caption_tokens"
KINDS = {"sd": {"dataset.caption_dropout": 0.4}}
SLOW_KINDS = {
    "sd, bf16": {"dataset.caption_dropout": 0.4, "mixed_precision": "bf16"},
    "text encoder": {
        "train_args.train_text_encoder": True,
        "lora.dropout": 0.2,
        "dataset.caption_dropout": 0.4,
        "dataset.shuffle_tags": True,
    },
    "xl": {},
    "xl, text encoders": {"train_args.train_text_encoder": True, "dataset.caption_dropout": 0.4},
}


def words(index, count):
    """A caption of so many tokens: letters, of which every tenth is followed by a comma."""
    return " ".join("abcdefghij"[(k * 7 + index) % 10] + ("," if k % 10 == 9 else "") for k in range(count))


@pytest.fixture(scope="module")
def long_captions(tmp_path_factory):
    """From one row to more than three, side by side in a batch."""
    folder = build_dataset(tmp_path_factory.mktemp("long"), 5)
    rows = [{"file_name": f"{k:04d}.png", "text": words(k, 20 + 60 * k)} for k in range(5)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def long_task(task, long_captions):
    steps = {"train_args.max_train_steps": 5, "train_args.num_train_steps": 5}
    return changed(task, {"dataset.name": str(long_captions), LIMIT: 225, **steps})


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS)])
def test_split_anywhere(long_task, model, xl_model, tmp_path, kind):
    base = xl_model if kind.startswith("xl") else model
    task = changed(long_task, {"model.name": str(base), **(KINDS | SLOW_KINDS)[kind]})
    whole, chain = together(
        lambda: succeed(task, tmp_path / "whole"),
        lambda: run_chain(
            task,
            tmp_path,
            (2, 3),
            each=lambda index: slice_environment(tmp_path, index, is_forked=kind in KINDS),
            changes=lambda index: {"dataloader_num_workers": index % 2},
        ),
    )
    assert_same(chain[-1].weights(), whole.weights())


@pytest.mark.slow
def test_processes_share_them_out(long_task, tmp_path):
    one = succeed(long_task, tmp_path / "one", env={"CACHE_DIR": str(tmp_path / "one-cache")})
    two = succeed(long_task, tmp_path / "two", env={"PROCESSES": "2", "CACHE_DIR": str(tmp_path / "two-cache")})
    assert "starting 2 processes" in two.stderr
    assert_same(two.folders(), one.folders())


@pytest.mark.slow
def test_what_lies_beyond_the_first_row_is_learned_only_where_asked_for(short_task, long_captions, tmp_path):
    """And 75 is the default in all but name."""

    def trained(name, ending, limit):
        folder = shutil.copytree(long_captions, tmp_path / f"data-{name}-{limit}")
        rows = [{"file_name": f"{k:04d}.png", "text": words(k, 77) + ending} for k in range(5)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = {"dataset": {"name": str(folder), "max_caption_tokens": limit}, "validation.prompt": "a"}
        return succeed(changed(short_task, wanted), tmp_path / f"{name}-{limit}").weights()

    plain, cut = trained("long", " z" * 20, None), trained("cut", "", None)
    assert_same(cut, plain)
    assert_same(trained("long", " z" * 20, 75), plain)
    two_rows = [trained("long", " z" * 20, 150), trained("cut", "", 150)]
    key = "pytorch_lora_weights.safetensors"
    assert len({plain[key], *(weights[key] for weights in two_rows)}) == 3


def test_a_chain_keeps_its_limit(long_task, tmp_path):
    one_row = changed(long_task, {LIMIT: None, "train_args.num_train_steps": 1})
    first = succeed(one_row, tmp_path / "first")
    resume = ("--plan", "--checkpoint", first.out / "checkpoint")
    refused = run_job(changed(one_row, {LIMIT: 150}), tmp_path / "out", *resume)
    assert refused.code == 5 and "max_caption_tokens is at its default in the checkpoint, 150 in" in refused.error
    assert "changes" not in succeed(changed(one_row, {LIMIT: 75}), tmp_path / "out", *resume).stdout


def test_the_plan_counts_what_is_cut_at_the_limit(long_task, tmp_path):
    for limit, cut in ((None, "4 of 5 are cut at 75"), (225, "1 of 5 is cut at 225")):
        assert cut in succeed(changed(long_task, {LIMIT: limit}), tmp_path / "out", "--plan").stdout


@pytest.mark.slow
def test_the_validation_is_drawn_from_the_whole_prompt(short_task, model, tmp_path):
    """What Diffusers draws with the published LoRA from the same embeddings, which its own prompt would not give."""
    prompt = words(3, 100)
    own = {LIMIT: 150, "validation.prompt": prompt, "validation.num_inference_steps": 30}
    finished = succeed(changed(short_task, own), tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(finished.out / "checkpoint")
    (image,) = json.loads((finished.out / "validation" / "prompts.json").read_text())
    assert image["prompt"] == prompt

    def encoded(text):
        first = pipe.tokenizer(text, max_length=77, padding="max_length", truncation=True).input_ids
        tail = pipe.tokenizer(text, add_special_tokens=False).input_ids[75:]
        second = [first[0], *tail, *[first[-1]] * (76 - len(tail))]
        with torch.no_grad():
            return torch.cat([pipe.text_encoder(torch.tensor([row]))[0] for row in (first, second)], dim=1)

    def drawn(**prompts):
        sizes = {"height": 64, "width": 64, "num_inference_steps": 30, "guidance_scale": 7.5}
        return np.asarray(pipe(**prompts, **sizes, generator=torch.Generator().manual_seed(image["seed"])).images[0])

    found = np.asarray(Image.open(io.BytesIO((finished.out / "validation" / image["file"]).read_bytes()))).astype(int)
    assert np.abs(found - drawn(prompt_embeds=encoded(prompt), negative_prompt_embeds=encoded(""))).max() <= 1
    assert np.abs(found - drawn(prompt=prompt)).max() > 1
