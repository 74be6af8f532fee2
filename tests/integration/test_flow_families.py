"""Families with a transformer and flow matching: the same bytes however cut, killed or shared, and files that load."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.support.harness import assert_same, changed, read_json, slice_environment, succeed
from tests.support.pipelines import in_own_memory
from tests.support.tiny_flux import build_flux
from tests.support.tiny_flux2_klein import build_flux2_klein
from tests.support.tiny_qwen_image import build_qwen_image
from tests.support.tiny_sd3 import build_sd3
from tests.support.tiny_z_image import build_z_image
from tests.support.whole_trainings import WholeTrainings, result_of

BUILDERS = {
    "flux": build_flux,
    "sd3": build_sd3,
    "qwen_image": build_qwen_image,
    "z_image": build_z_image,
    "flux2_klein": build_flux2_klein,
}
"""A builder of a tiny model for each family."""
OFTEN = "flux"
"""The family that the default run cuts into a chain and damages: what it tests there is in code that all share."""
STEPS = 6
SHORT = {
    **{f"train_args.{key}": STEPS for key in ("num_train_steps", "max_train_steps")},
    "train_args.batch_size": 2,
    "validation.num_inference_steps": 2,
}
TEXTS = {"train_args.train_text_encoder": True, "train_args.text_encoder_learning_rate": 1e-3}
BUCKETS = {"transforms.buckets": True, "train_args.resolution": 128}
AVERAGE = {"train_args.ema_decay": 0.9}
VARIANTS = {
    "LoRA": {"validation.dataset": {"fraction": 0.25}},
    "LoRA, bf16, text encoders": {
        **{"mixed_precision": "bf16", "lora.dropout": 0.1, "lora.alpha": 3, **TEXTS, **AVERAGE, **BUCKETS},
        "train_args.timestep_sampling": "mode",
    },
    "LoRA, LoftQ, masks": {
        **{"lora.init_lora_weights": "loftq", "dataset.mask_column": "mask", "train_args.loss_type": "huber"},
        "train_args.gradient_checkpointing": True,
    },
    "full": {"training_type": "full", **TEXTS, **AVERAGE},
    "full, bf16": {"training_type": "full", "mixed_precision": "bf16", "train_args.flow_shift": 3.0, **BUCKETS},
}
QUICK = "LoRA"
OF_TEXT_ENCODERS = {"flux", "sd3"}
"""The families of which text encoders can be trained."""
KINDS = [
    pytest.param(family, variant, marks=() if variant == QUICK and family == OFTEN else pytest.mark.slow)
    for family in BUILDERS
    for variant in VARIANTS
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build(folder / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Images of which a part counts, in each another one."""
    folder = tmp_path_factory.mktemp("masked")
    rows = []
    for k in range(4):
        Image.effect_noise((64, 64), 20 + 40 * k).convert("RGB").save(folder / f"{k}.png")
        Image.linear_gradient("L").resize((64, 64)).rotate(90 * k).save(folder / f"mask-{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"image {k}", "mask": f"mask-{k}.png"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def task_of(task, models, masked):
    def variant(family, name):
        own = changed(task, {**SHORT, **VARIANTS[name], "model.name": str(models[family])})
        if family not in OF_TEXT_ENCODERS:
            own["train_args"] = {key: value for key, value in own["train_args"].items() if "text_encoder" not in key}
        return changed(own, {"dataset.name": str(masked)} if "masks" in name else {})

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
    for part, steps in enumerate((1, 3, 2)):
        own = changed(task_of(family, name), {"train_args.num_train_steps": steps})
        last = run(own, tmp_path / f"{part}", *parent)
        parent = ("--checkpoint", last.out / "checkpoint")
    assert last.result["finished"] and last.result["global_step"] == STEPS
    assert_same(result_of(last), result_of(whole_of(family, name)))


@pytest.mark.slow
@pytest.mark.parametrize("family, name", KINDS)
def test_killed_anywhere(whole_of, tmp_path, family, name):
    whole_of.assert_killed_anywhere(tmp_path, family, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LoRA, bf16, text encoders", "full"])
@pytest.mark.parametrize("family", BUILDERS)
def test_two_processes_are_one(task_of, tmp_path, family, name):
    own = task_of(family, name)
    alone = succeed(own, tmp_path / "alone")
    together = succeed(own, tmp_path / "together", env={"PROCESSES": "2"})
    assert_same(together.folders(), alone.folders())


def weights_of(finished):
    return {name: data for name, data in finished.folders().items() if name.endswith((".safetensors", ".png"))}


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_nothing_of_the_machine_is_in_the_result(task_of, whole_of, tmp_path, family):
    """Not the cache, nor the number of workers."""
    own = changed(task_of(family, QUICK), {"dataloader_num_workers": 2})
    other = succeed(own, tmp_path / "out", env={"MAX_ENCODED_BYTES": "0", **slice_environment(tmp_path, 1)})
    assert_same(weights_of(other), weights_of(whole_of(family, QUICK)))


@pytest.mark.parametrize("name", [QUICK, pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.usefixtures("one_thread")
def test_pictures_are_drawn_by_diffusers_with_just_the_file(whole_of, task_of, models, complaints, family, name):
    """Or with the published folders in place of the base model's."""
    finished, side = whole_of(family, name), task_of(family, name)["train_args"]["resolution"]
    pipe = DiffusionPipeline.from_pretrained(models[family])
    for part, module in pipe.components.items():
        if (finished.out / "checkpoint" / part).is_dir():
            pipe.register_modules(**{part: type(module).from_pretrained(finished.out / "checkpoint" / part)})
    in_own_memory(pipe)
    if name == QUICK:
        pipe.load_lora_weights(finished.out / "checkpoint", weight_name="pytorch_lora_weights.safetensors")
        assert [line for line in complaints if not line.startswith("No LoRA keys associated to CLIP")] == []
    for row in read_json(finished.out / "validation" / "prompts.json"):
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        options = {name: row[name] for name in ("guidance_scale", "num_inference_steps") if name in row}
        if family == "qwen_image":  # its guidance has another name, and there is none without a negative prompt
            options |= {"true_cfg_scale": options.pop("guidance_scale"), "negative_prompt": " "}
        drawn = pipe(prompt=row["prompt"], height=side, width=side, generator=generator, **options).images[0]
        with Image.open(finished.out / "validation" / row["file"]) as kept:
            assert np.array_equal(np.asarray(drawn), np.asarray(kept))


@pytest.mark.slow
def test_layers_whose_result_is_unused_keep_their_weights(whole_of, models):
    """Those of the text after the last attention of Qwen-Image, though the other weights decay."""
    before, after = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (models["qwen_image"], whole_of("qwen_image", "full").out / "checkpoint")
    )
    kept = {key for key in before if torch.equal(before[key], after[key])}
    last = max(int(key.split(".")[1]) for key in before if key.startswith("transformer_blocks."))
    unused = ("txt_mlp.net.0.proj", "txt_mlp.net.2", "attn.to_add_out")
    assert kept == {f"transformer_blocks.{last}.{name}.{part}" for name in unused for part in ("weight", "bias")}


@pytest.mark.slow
def test_it_learns_its_images(run, task_of, dataset, tmp_path):
    """The loss at fixed timesteps and noise falls, most where there is the most noise: there it is the images alone.

    One family stands for the objective; Stable Diffusion 3's tiny model is too small to learn them in a few steps.
    """
    changes = {
        **{"training_type": "full", "dataset.max_caption_tokens": 16, "validation.dataset": {"name": str(dataset)}},
        **{"train_args.learning_rate": 3e-3, "train_args.batch_size": 8, "transforms.random_flip": False},
        **{f"train_args.{key}": 80 for key in ("num_train_steps", "max_train_steps")},
    }
    learned = run(changed(task_of("flux", QUICK), changes), tmp_path / "out")
    lines = (learned.out / "checkpoint" / "heldout.jsonl").read_text().splitlines()
    before, *_, after = [json.loads(line)["strata"] for line in lines]
    falls = [new / old for old, new in zip(before, after, strict=True)]
    assert falls[-1] < 0.6 and falls[-1] < falls[0]


def without_a_part(folder):
    shutil.rmtree(folder / "vae")


def with_a_pickle(folder):
    """In place of the transformer's weights."""
    (path,) = (folder / "transformer").glob("*.safetensors")
    path.unlink()
    (path.parent / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def with_other_weights(folder):
    """The text encoder's in place of the VAE's."""
    shutil.copy(next((folder / "text_encoder").glob("*.safetensors")), next((folder / "vae").glob("*.safetensors")))


@pytest.mark.parametrize("damage", [without_a_part, with_a_pickle, with_other_weights], ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == OFTEN else pytest.mark.slow) for name in BUILDERS]
)
def test_what_is_not_such_a_model_is_refused(server, task_of, models, tmp_path, family, damage):
    folder = shutil.copytree(models[family], tmp_path / "model")
    damage(folder)
    refused = server.run(changed(task_of(family, QUICK), {"model.name": str(folder)}), tmp_path / "out")
    assert refused.code == 4 and not (tmp_path / "out" / "checkpoint").exists()
