"""What the LoRA's row says of a task."""

from dataclasses import replace

import pytest

from engine.models.families.sd.spec import SPEC
from engine.task.task import Dataset, Lora, Model, Task
from engine.training.methods.lora.spec import LORA
from engine.training.methods.warm_start import WarmStart

WEIGHTS = WarmStart(digest="d", weights=b"", name="pytorch_lora_weights.safetensors")


def task_of(**options):
    return Task(model=Model(name="m"), dataset=Dataset(name="d"), lora=Lora(**options))


@pytest.mark.parametrize("init, noted", [(True, False), (False, True), ("gaussian", True), ("loftq", False)])
def test_a_lora_to_start_from_is_the_start(init, noted):
    task = task_of(init_lora_weights=init)
    assert LORA.notes(task, None) == []
    note = "lora.init_lora_weights has no effect: the training starts from the LoRA of the checkpoint"
    assert LORA.notes(task, WEIGHTS) == [note] * noted


@pytest.mark.parametrize("config, noted", [(None, True), (b"{}", False)])
def test_pefts_file_alone_has_no_strength(config, noted):
    weights = replace(WEIGHTS, name="adapter_model.safetensors", config=config)
    assert len(LORA.notes(task_of(), weights)) == noted


def test_only_options_that_are_set_are_invariants():
    assert LORA.invariants(SPEC, task_of(rank=4, alpha=4)) == {
        "adapter": "lora",
        "rank": 4,
        "target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }
    found = LORA.invariants(SPEC, task_of(alpha=2, use_rslora=True, target_modules=".*", init_lora_weights="loftq"))
    assert found == {"adapter": "loftq", "rank": 8, "target_modules": ".*", "alpha": 2.0, "use_rslora": True}


def test_files_of_an_earlier_step():
    files = {"pytorch_lora_weights.safetensors": b"a", "lora_webui.safetensors": b"b"}
    names = {"steps/000020.safetensors": b"a", "steps/000020_webui.safetensors": b"b"}
    assert LORA.step_files(20, files) == names
