"""What the LoRA's row says of a task."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.models.families.sd.spec import SPEC
from engine.task.task import Dataset, Lora, Model, Task
from engine.training.methods.lora.spec import LORA
from engine.training.methods.warm_start import WarmStart

WEIGHTS = WarmStart(folder=Path("f"), digest="d", hashes={"pytorch_lora_weights.safetensors": "h"})


def task_of(**options):
    return Task(model=Model(name="m"), dataset=Dataset(name="d"), lora=Lora(**options))


@pytest.mark.parametrize("init, noted", [(True, False), (False, True), ("gaussian", True), ("loftq", False)])
def test_a_lora_to_start_from_is_the_start(init, noted):
    task = task_of(init_lora_weights=init)
    assert LORA.notes(task, None) == []
    note = "lora.init_lora_weights has no effect: the training starts from the LoRA of the checkpoint"
    assert LORA.notes(task, WEIGHTS) == [note] * noted


@pytest.mark.parametrize("more, noted", [({}, True), ({"adapter_config.json": "h"}, False)])
def test_pefts_file_alone_has_no_strength(more, noted):
    weights = replace(WEIGHTS, hashes={"adapter_model.safetensors": "h", **more})
    assert len(LORA.notes(task_of(), weights)) == noted


def test_a_factor_is_for_a_lokr():
    assert LORA.notes(task_of(factor=4), None) == ["lora.factor has no effect with the training_type lora"]


def test_only_options_that_are_set_are_invariants():
    assert LORA.invariants(SPEC, task_of(rank=4, alpha=4)) == {
        "adapter": "lora",
        "rank": 4,
        "target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }
    found = LORA.invariants(SPEC, task_of(alpha=2, use_rslora=True, target_modules=".*", init_lora_weights="loftq"))
    assert found == {"adapter": "loftq", "rank": 8, "target_modules": ".*", "alpha": 2.0, "use_rslora": True}


def test_files_of_an_earlier_step():
    endings = {"pytorch_lora_weights.safetensors": ".safetensors", "lora_webui.safetensors": "_webui.safetensors"}
    assert {name: LORA.step_ending(name) for name in endings} == endings
    assert all(map(LORA.is_step_ending, endings.values()))
    assert LORA.step_ending("state.safetensors") is None and not LORA.is_step_ending("_other.safetensors")
