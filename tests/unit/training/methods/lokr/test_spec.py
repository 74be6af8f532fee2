"""What the LoKr's row says of a task and of a family."""

from pathlib import Path

import pytest

from engine.models.registry import FAMILIES
from engine.task.task import Lora
from engine.training.methods.lokr.spec import LOKR, has_webui
from engine.training.methods.warm_start import WarmStart
from tests.support.abouts import task_of

SPEC = FAMILIES["StableDiffusionPipeline"]
WEIGHTS = WarmStart(folder=Path("f"), digest="d", hashes={"pytorch_lora_weights.safetensors": "h"})


def test_what_a_chain_agrees_on():
    plain = {"adapter": "lokr", "rank": 8, "target_modules": ["to_k", "to_out.0", "to_q", "to_v"]}
    assert LOKR.invariants(SPEC, task_of(lora=Lora())) == plain
    assert LOKR.invariants(SPEC, task_of(lora=Lora(factor=4, alpha=2))) == plain | {"factor": 4, "alpha": 2.0}


@pytest.mark.parametrize("init", [True, False])
def test_weights_to_start_from_are_the_start(init):
    task = task_of(lora=Lora(init_lora_weights=init))
    assert LOKR.notes(task, None) == []
    assert bool(LOKR.notes(task, WEIGHTS)) == (not init)


def test_no_file_for_web_interfaces_that_join_layers_or_lack_the_model():
    without = {name for name, family in FAMILIES.items() if not has_webui(family)}
    assert without == {"CogVideoXPipeline", "HunyuanVideoPipeline"}
