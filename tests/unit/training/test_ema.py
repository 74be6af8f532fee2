"""The moving average: its formula, exact across cuts, in place of the weights for a while."""

import contextlib
import threading

import pytest
import torch

from engine.core.errors import CheckpointError
from engine.training.ema import Ema, decay_of
from tests.support.fake_memory import LiveBytes
from tests.support.states import parse_state
from tests.support.threads import in_threads
from tests.support.whole_models import Run16, WholeRun
from tests.unit.training.test_trainer import Run, make_task


def task(precision="no", **args):
    return make_task(precision, ema_decay=0.8, gradient_accumulation_steps=4, **args)


def test_the_decay_rises_to_the_tasks():
    assert [decay_of(steps, 0.99) for steps in (0, 1, 8, 890, 891)] == [0.1, 2 / 11, 0.5, 0.99, 0.99]
    assert decay_of(0, 0.05) == 0.05


@pytest.mark.parametrize("run_type", [Run, WholeRun, Run16])
def test_it_is_the_formula(run_type):
    """Written out in float64, from the training's start."""
    run = run_type(task())
    exact = {name: value.double() for name, value in run.trainable.state().items()}
    for step in range(8):
        run.step()
        decay = min(0.8, (1 + step) / (10 + step))
        for name, value in run.trainable.state().items():
            exact[name] = decay * exact[name] + (1 - decay) * value.double()
    shadow = run.trainer.state().ema
    assert shadow.keys() == exact.keys()
    for name, value in shadow.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(value, run.trainable.state()[name]) for name, value in shadow.items())


@pytest.mark.parametrize("cuts", [(1,), (3, 4)])
def test_a_chain_has_the_average_of_one_training(cuts):
    whole, state = Run(task()).train(), None
    for start, stop in zip((0, *cuts), (*cuts, 8), strict=True):
        link = Run(task(), start=start, stop=stop, restore=state).train()
        state = parse_state(*link.bytes())
    assert link.bytes() == whole.bytes() and state.ema


def test_it_has_no_effect_on_the_training():
    with_average, without = Run(task()).train(), Run(make_task(gradient_accumulation_steps=4)).train()
    assert with_average.reports == without.reports
    assert all(torch.equal(value, without.trainable.state()[k]) for k, value in with_average.trainable.state().items())
    assert without.trainer.state().ema == {}


def test_a_step_that_fp16_skips_counts():
    run = Run(task("fp16")).train(stop=3)
    before = {name: value.clone() for name, value in run.trainer.state().ema.items()}
    run.trainable.parameters["unet.to_q.lora_A.weight"].register_hook(lambda gradient: gradient * torch.inf)
    assert run.step().grad_norm is None
    decay = decay_of(3, 0.8)
    for name, value in run.trainer.state().ema.items():
        expected = before[name].double() * decay + run.trainable.state()[name].double() * (1 - decay)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("saved, continued", [(True, False), (False, True)])
def test_a_checkpoint_with_it_is_continued_with_it_only(saved, continued):
    tasks = {True: task(), False: make_task(gradient_accumulation_steps=4)}
    state = parse_state(*Run(tasks[saved]).train().bytes())
    with pytest.raises(CheckpointError, match=r"moving average does not fit train_args\.ema_decay"):
        Run(tasks[continued], restore=state)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_a_foreign_average_is_refused_by_name(change):
    ema = Ema({"a": torch.nn.Parameter(torch.ones(3)), "c": torch.nn.Parameter(torch.ones(2))}, 0.9)
    shadow = {"a": torch.zeros(3), "c": torch.zeros(2)}
    if change == "missing":
        del shadow["c"]
    elif change == "more":
        shadow["b"] = torch.zeros(1)
    else:
        shadow["c"] = torch.zeros(2, 1)
    with pytest.raises(CheckpointError, match=f"parameter {'b' if change == 'more' else 'c'}$"):
        ema.restore(shadow)


def test_an_update_needs_no_copy():
    parameters = {name: torch.nn.Parameter(torch.ones(1000)) for name in "ab"}
    ema = Ema(parameters, 0.9)
    known = [*parameters.values(), *ema.shadow.values()]
    with LiveBytes(known) as memory:
        ema.update(3)
    assert memory.peak < 1000


def copied(named):
    return {name: value.detach().clone() for name, value in named.items()}


def all_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestAveraged:
    @pytest.mark.parametrize("run_type", [Run, WholeRun, Run16])
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_the_parameters_have_the_average_inside_and_their_own_values_afterwards(self, run_type, world_size):
        """So have the layers, which compute with rounded ones."""
        alone = run_type(task()).train(stop=5)
        own, average = copied(alone.trainable.state()), copied(alone.trainer.state().ema)
        layers = copied(getattr(alone.trainable, "layers", {}))

        def averaged(processes):
            run = run_type(task(), processes=processes).train(stop=5)
            with run.trainer.averaged():
                assert all_equal(copied(run.trainable.state()), average)
                inside = copied(getattr(run.trainable, "layers", {}))
                assert all_equal(inside, {name: average[name].to(inside[name].dtype) for name in layers})
                assert not layers or not all_equal(inside, layers)
            assert all_equal(copied(run.trainable.state()), own)
            assert all_equal(copied(getattr(run.trainable, "layers", {})), layers)
            return run.train()

        for run in in_threads(world_size, averaged):
            assert all_equal(copied(run.trainable.state()), copied(alone.train().trainable.state()))

    @pytest.mark.parametrize("run_type", [Run, WholeRun])
    def test_a_state_that_is_saved_inside_is_the_trainings(self, run_type):
        """A signal may end the job while images are drawn."""
        run = run_type(task()).train(stop=5)
        before = run.bytes()
        with run.trainer.averaged():
            inside = run.bytes()
        assert inside == before == run.bytes()

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_after_an_error_in_one_process_it_does_not_wait_for_the_others(self, world_size):
        """It has its own weights again where it has them."""
        entered = threading.Barrier(world_size)

        def one(processes):
            run = WholeRun(task(), processes=processes).train(stop=5)
            own = copied({name: run.trainable.state()[name] for name in run.trainer._gradients.owned})
            with contextlib.suppress(KeyError), run.trainer.averaged():
                entered.wait(60)
                raise KeyError
            return all(torch.equal(run.trainable.state()[name], value) for name, value in own.items())

        assert in_threads(world_size, one) == [True] * world_size

    def test_without_an_average_it_does_nothing(self):
        run = Run(make_task(gradient_accumulation_steps=4)).train(stop=2)
        before = run.bytes()
        with run.trainer.averaged():
            assert run.bytes() == before
