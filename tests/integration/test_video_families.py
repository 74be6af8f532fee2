"""Families of clips: the same bytes however cut, killed or shared, images and clips mixed; and LoRA files that load."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from engine.evaluation.clip_file import encode_clip
from tests.support.clips import make_clip
from tests.support.harness import assert_same, changed, read_json, succeed
from tests.support.pipelines import in_own_memory
from tests.support.tiny_cogvideox import TEXT_LENGTH, build_cogvideox
from tests.support.tiny_hunyuan_video import build_hunyuan_video
from tests.support.tiny_ltx import build_ltx
from tests.support.tiny_wan import build_wan
from tests.support.whole_trainings import WholeTrainings, result_of

BUILDERS = {
    "ltx": build_ltx,
    "wan": build_wan,
    "cogvideox": build_cogvideox,
    "hunyuan_video": build_hunyuan_video,
}
"""A builder of a tiny model for each family."""
DIFFUSERS, WEBUI = "pytorch_lora_weights.safetensors", "lora_webui.safetensors"
NOT_READ = {"cogvideox", "hunyuan_video"}
"""The families of which Diffusers reads no file with ComfyUI's names: there is none of CogVideoX, and of HunyuanVideo
it reads those of the published width alone (`families/hunyuan_video/test_webui.py`)."""
STEPS = 3
SHORT = {
    **{f"train_args.{key}": STEPS for key in ("num_train_steps", "max_train_steps")},
    **{"train_args.batch_size": 2, "train_args.num_frames": 9, "validation.num_inference_steps": 2},
}
MIXED = {"transforms.buckets": True, "train_args.resolution": 128, "dataset.frame_extraction": "random"}
"""An image, and clips of which each visit shows frames of its own."""
BF16 = {"mixed_precision": "bf16"}
VARIANTS = {
    "LoRA": {"dataset.frame_extraction": "chunk"},
    "LoRA, mixed, bf16": {**MIXED, **BF16, "lora.dropout": 0.1, "train_args.gradient_checkpointing": True},
    "full": {"training_type": "full", "dataset.frame_rate": 12.0, "dataset.frame_extraction": "uniform"},
    "full, mixed, bf16": {**MIXED, **BF16, "training_type": "full", "train_args.ema_decay": 0.9},
}
QUICK = "LoRA"
KINDS = [
    pytest.param(family, variant, marks=pytest.mark.long if variant == QUICK else pytest.mark.slow)
    for family in BUILDERS
    for variant in VARIANTS
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build(folder / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips that are long enough at 12 and at 24 frames a second."""
    folder = tmp_path_factory.mktemp("clips")
    for k, size in enumerate([(96, 64), (64, 96), (80, 80), (64, 64)]):
        make_clip(folder / f"{k}.mp4", frames=18 + 3 * k, size=size, first=40 * k)
        (folder / f"{k}.txt").write_text(f"clip {k}")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images, and clips of which one is too short for the largest bucket."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = []
    for k, frames in enumerate((14, 9, 7)):
        make_clip(folder / f"{k}.mp4", frames=frames, size=(128, 128), first=40 * k)
        rows.append({"file_name": f"{k}.mp4", "text": f"clip {k}"})
    for k in range(2):
        Image.effect_noise((128, 128), 20 + 40 * k).convert("RGB").save(folder / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"image {k}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def task_of(task, models, clips, mixed):
    def variant(family, name):
        inputs = {"model.name": str(models[family]), "dataset.name": str(mixed if "mixed" in name else clips)}
        return changed(task, {**SHORT, **VARIANTS[name], **inputs})

    return variant


@pytest.fixture(scope="module")
def whole_of(server, task_of, tmp_path_factory):
    return WholeTrainings(server, task_of, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def run(whole_of):
    return whole_of.run


@pytest.mark.parametrize("family, name", KINDS)
def test_a_chain_is_the_training_in_one_go(run, task_of, whole_of, tmp_path, family, name):
    parent = ()
    for part, steps in enumerate((1, 2)):
        own = changed(task_of(family, name), {"train_args.num_train_steps": steps})
        last = run(own, tmp_path / f"{part}", *parent)
        parent = ("--checkpoint", last.out / "checkpoint")
    assert last.result["finished"] and last.result["global_step"] == STEPS
    assert_same(result_of(last), result_of(whole_of(family, name)))


@pytest.mark.slow
@pytest.mark.parametrize("family, name", [(family, name) for family in BUILDERS for name in VARIANTS])
def test_killed_anywhere(whole_of, tmp_path, family, name):
    whole_of.assert_killed_anywhere(tmp_path, family, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LoRA, mixed, bf16", "full"])
@pytest.mark.parametrize("family", BUILDERS)
def test_two_processes_are_one(task_of, tmp_path, family, name):
    own = task_of(family, name)
    alone = succeed(own, tmp_path / "alone")
    together = succeed(own, tmp_path / "together", env={"PROCESSES": "2"})
    assert_same(together.folders(), alone.folders())


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_a_clip_is_encoded_alike_wherever_it_is(task_of, whole_of, tmp_path, family):
    """In windows of one step, by another process's cache, and without a cache."""
    own = changed(task_of(family, QUICK), {"dataloader_num_workers": 2})
    other = succeed(own, tmp_path / "out", env={"MAX_ENCODED_BYTES": "0"})
    assert_same(result_of(other), result_of(whole_of(family, QUICK)))


def in_words_of_diffusers(webui):
    """A file for web interfaces with its strength in the matrices: Diffusers refuses what has an alpha."""
    found = {}
    for key in (key for key in webui if key.endswith(".alpha")):
        module = key.removesuffix(".alpha")
        down, up = (webui[f"{module}.lora_{name}.weight"] for name in ("down", "up"))
        found |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up * webui[key] / len(down)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_diffusers_loads_lora_files(whole_of, models, complaints, family):
    """Its own, and that with ComfyUI's names: no key is missing or unexpected, and the weights change alike."""
    checkpoint = whole_of(family, QUICK).out / "checkpoint"
    written = load_file(checkpoint / DIFFUSERS)
    assert (checkpoint / WEBUI).exists() == (family != "cogvideox")
    changes = []
    webui = [] if family in NOT_READ else [in_words_of_diffusers(load_file(checkpoint / WEBUI))]
    for lora in (written, *webui):
        pipe = DiffusionPipeline.from_pretrained(models[family])
        before = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
        pipe.load_lora_weights(dict(lora))
        layers = [key for key, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")]
        assert len(layers) == len(written) // 2 == len(lora) // 2
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        after = pipe.transformer.state_dict()
        changes.append({key: after[key] - before[key] for key in before})
    assert complaints == []
    assert sum(bool(change.any()) for change in changes[0].values()) == len(written) // 2
    for name, down in written.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
            product = written[name.replace("lora_A", "lora_B")] @ down
            for change in changes:
                torch.testing.assert_close(change[f"{layer}.weight"], product, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [QUICK, "full"])
@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.usefixtures("one_thread")
def test_clips_are_drawn_by_diffusers_with_just_the_file(whole_of, models, family, name):
    """Or with the published folder in place of the base model's."""
    out = whole_of(family, name).out
    pipe = DiffusionPipeline.from_pretrained(models[family])
    if name == QUICK:
        pipe.load_lora_weights(out / "checkpoint", weight_name="pytorch_lora_weights.safetensors")
    else:
        own = type(pipe.transformer).from_pretrained(out / "checkpoint" / "transformer")
        pipe.register_modules(transformer=own)
    in_own_memory(pipe)
    pipe.vae.enable_tiling()
    known = inspect.signature(type(pipe).__call__).parameters
    for row in read_json(out / "validation" / "prompts.json"):
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        side = {"height": 64, "width": 64, "num_frames": 9, "output_type": "pil"}
        side |= {"max_sequence_length": TEXT_LENGTH} if family == "cogvideox" else {}
        options = side | {key: value for key, value in row.items() if key in known}
        drawn = np.stack([np.asarray(frame) for frame in pipe(**options, generator=generator).frames[0]])
        assert encode_clip(drawn, row["frame_rate"]) == (out / "validation" / row["file"]).read_bytes()
