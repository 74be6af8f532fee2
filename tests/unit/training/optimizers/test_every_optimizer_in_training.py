"""What each optimizer of the registry promises of whole trainings: their bits are the same however they are divided."""

from itertools import pairwise

import pytest
import torch

from engine.results.state import flatten_state
from engine.training.optimizers import adamw_8bit, layout, registry
from engine.training.optimizers.registry import OPTIMIZERS
from tests.support.threads import through_gloo
from tests.support.toy_optimizer import TOY_OPTIMIZER
from tests.support.whole_models import Run16, WholeRun, restored, same
from tests.unit.training.gradients.test_by_tensor import train_in
from tests.unit.training.test_trainer import Run, make_task

ROWS = {**OPTIMIZERS, "toy": TOY_OPTIMIZER}
CHAIN = (0, 1, 4, 6)


@pytest.fixture(params=ROWS)
def task(request, monkeypatch):
    """A task with this optimizer; few values are enough for slots in 8 bits."""
    monkeypatch.setattr(registry, "OPTIMIZERS", ROWS)
    for module in (layout, adamw_8bit):
        monkeypatch.setattr(module, "MIN_8_BIT", 20)
    # It begins with a millionth of the rate.
    rate = 1000.0 if ROWS[request.param].finds_rate else 0.05
    return make_task(optimizer=request.param, learning_rate=rate, gradient_accumulation_steps=6, ema_decay=0.9)


@pytest.mark.parametrize("run_type", [WholeRun, Run16])
def test_a_chain_of_a_whole_model_in_any_number_of_processes(task, run_type):
    saved = None
    for world_size, (start, stop) in zip((2, 1, 3), pairwise(CHAIN), strict=True):
        saved = train_in(world_size, run_type, task, start=start, stop=stop, saved=saved)[0][0]
    whole = run_type(task, stop=6).train()
    assert same(saved, whole.saved())
    assert whole.saved()[1].get("optimizer_numbers", {"d": 1.0})["d"] > 1e-5, "an estimate has grown"
    has_codes = any(tensor.dtype == torch.uint8 for tensor in flatten_state(whole.trainer.state())[0].values())
    assert has_codes == (task.train_args.optimizer == "adamw_8bit")


def test_two_processes_as_they_are_connected(task):
    assert same(train_in(2, Run16, task, stop=6, connect=through_gloo)[0][0], Run16(task, stop=6).train().saved())


def test_a_chain_of_few_values(task):
    """Every process has all of them."""
    state = None
    for start, stop in pairwise(CHAIN):
        link = Run(task, start=start, stop=stop, restore=state).train()
        state = restored(flatten_state(link.trainer.state()))
    assert link.bytes() == Run(task, stop=6).train().bytes()
