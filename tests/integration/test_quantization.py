"""Quantised base models: the same bytes however a training is cut, killed or shared; other bytes with each format."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.support.harness import assert_same, changed, run_job, succeed
from tests.support.tiny_flux import build_flux
from tests.support.whole_trainings import WholeTrainings, result_of

FORMATS = ("int8", "fp8", "nf4")
STEPS = 3
SHORT = {
    **{f"train_args.{key}": STEPS for key in ("num_train_steps", "max_train_steps")},
    **{"train_args.batch_size": 2, "validation.num_inference_steps": 2},
}
VARIANTS = {
    "sd": {},
    "sd, bf16, dropout, text encoder": {
        **{"mixed_precision": "bf16", "lora.dropout": 0.1, "lora.target_modules": ["to_q", "conv1", "ff.net.0.proj"]},
        **{"train_args.train_text_encoder": True, "train_args.gradient_checkpointing": True},
    },
    "flux": {"validation.dataset": {"fraction": 0.25}},
    "flux, bf16": {"mixed_precision": "bf16", "train_args.gradient_checkpointing": True},
    "flux, LoKr": {"training_type": "lokr", "mixed_precision": "bf16"},
}
OFTEN = ("flux, bf16", "nf4")
KINDS = [
    pytest.param(variant, quantization, marks=() if (variant, quantization) == OFTEN else pytest.mark.slow)
    for variant in VARIANTS
    for quantization in FORMATS
]


@pytest.fixture(scope="module")
def task_of(task, model, tmp_path_factory):
    models = {"sd": model, "flux": build_flux(tmp_path_factory.mktemp("models") / "flux")}

    def variant(name, quantization):
        base = {"model.name": str(models[name.partition(",")[0]]), "model.quantization": quantization}
        return changed(task, {**SHORT, **VARIANTS[name], **base})

    return variant


@pytest.fixture(scope="module")
def whole_of(server, task_of, tmp_path_factory):
    return WholeTrainings(server, task_of, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def run(whole_of):
    return whole_of.run


@pytest.mark.parametrize("name, quantization", KINDS)
def test_a_chain_is_the_training_in_one_go(run, task_of, whole_of, tmp_path, name, quantization):
    own = task_of(name, quantization)
    offloads = {"train_args.offload": True} if name.startswith("flux") else {}
    first = run(changed(own, {"train_args.num_train_steps": 1, **offloads}), tmp_path / "1")
    parent = ("--checkpoint", first.out / "checkpoint")
    rest = changed(own, {"train_args.num_train_steps": STEPS - 1})
    assert_same(result_of(run(rest, tmp_path / "2", *parent)), result_of(whole_of(name, quantization)))
    other = changed(rest, {"model.quantization": "int8" if quantization == "fp8" else None})
    refused = run_job(other, tmp_path / "3", "--plan", *parent)
    assert refused.code == 5 and f"quantization is '{quantization}' in the checkpoint" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name, quantization", KINDS)
def test_killed_anywhere(whole_of, tmp_path, name, quantization):
    whole_of.assert_killed_anywhere(tmp_path, name, quantization)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", ["sd", "flux, bf16"])
def test_two_processes_are_one(task_of, tmp_path, name, quantization):
    own = task_of(name, quantization)
    alone = succeed(own, tmp_path / "alone")
    assert_same(succeed(own, tmp_path / "together", env={"PROCESSES": "2"}).folders(), alone.folders())


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "fp8"])
@pytest.mark.parametrize("name", ["flux", "flux, bf16", "flux, LoKr"])
def test_nothing_depends_on_where_blocks_and_their_inputs_are(run, server, task_of, tmp_path, name, quantization):
    """Also killed on the way, and in two processes."""
    whole, offloaded = (changed(task_of(name, quantization), {"train_args.offload": value}) for value in (False, True))
    expected = run(whole, tmp_path / "whole").folders()
    orders = {"env": {"SAVE_SECONDS": "0"}, "save_always": True, "watched": str(tmp_path / "out"), "strike": "kill"}
    assert server.run(offloaded, tmp_path / "out", **orders, at=12).code == -9
    assert_same(run(offloaded, tmp_path / "out").folders(), expected)
    assert_same(succeed(offloaded, tmp_path / "two", env={"PROCESSES": "2"}).folders(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "flux, bf16"])
def test_each_format_trains_something_else(whole_of, name):
    found = [whole_of(name, quantization).weights() for quantization in FORMATS]
    names = {file for file in found[0] if file.endswith(".safetensors")}
    assert names and all(len({weights[file] for weights in found}) == len(FORMATS) for file in names)


@pytest.mark.slow
def test_export_merges_into_the_original_weights(run, task_of, whole_of, model, tmp_path):
    """What the LoRA does not change stays as it is in the base model's files."""
    whole = whole_of("sd", "nf4")
    path = tmp_path / "exported"
    succeed(None, None, "export", whole.out, "--format", "diffusers", "--output", path, "--base", model)
    original, merged = (load_file(next((root / "unet").glob("*.safetensors"))) for root in (model, path))
    layer = "mid_block.attentions.0.transformer_blocks.0"
    assert original[f"{layer}.ff.net.2.weight"].equal(merged[f"{layer}.ff.net.2.weight"])
    change = (merged[f"{layer}.attn1.to_q.weight"] - original[f"{layer}.attn1.to_q.weight"]).double()
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2, "the LoRA alone, without the error of quantising"
