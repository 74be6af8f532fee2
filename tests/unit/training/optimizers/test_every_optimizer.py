"""What each optimizer of the registry promises, and one that is not in it: an exact state, complete, by name."""

import pytest
import torch

from engine.core.errors import CheckpointError, NonFiniteError
from engine.results.state import OptimizerState, TrainState
from engine.task.task import TrainArgs
from engine.training.optimizers import registry
from engine.training.optimizers.registry import OPTIMIZERS
from engine.training.optimizers.slots import expected_of
from tests.support.optimizer_runs import alone
from tests.support.states import dump_state, parse_state
from tests.support.threads import in_threads
from tests.support.toy_optimizer import TOY_OPTIMIZER
from tests.unit.training.optimizers import test_adamw
from tests.unit.training.optimizers.test_adamw import by_name

ROWS = {**OPTIMIZERS, "toy": TOY_OPTIMIZER}
NOT_ZERO = {"start"}
"""Slots that are not zeros in the beginning, and never change."""


def parameters():
    """Several shapes; the last one is large enough for slots in 8 bits, and not a multiple of their blocks."""
    large = torch.nn.Parameter(torch.randn((61, 70), generator=torch.Generator().manual_seed(9)))
    return test_adamw.parameters() | {"e": large}


@pytest.fixture(params=ROWS)
def name(request, monkeypatch):
    monkeypatch.setattr(registry, "OPTIMIZERS", ROWS)
    return request.param


def make(name, named, *, whole=False, total=alone):
    """The optimizer over two groups, whose order is not that of the names; of those parameters that there are."""
    groups = [{key: named[key] for key in keys if key in named} for keys in ("bd", "ace")]
    return registry.make(groups, TrainArgs(optimizer=name), is_whole_model=whole, total=total)


def rates(step):
    """So high that an optimizer which begins with a millionth of them changes the parameters, too."""
    return [10.0 / (step + 1), 1.0]


def train(optimizer, named, start, stop):
    for step in range(start, stop):
        optimizer.update(by_name(named, step), rates(step))


def through_a_file(state, named):
    """What a checkpoint gives back of it."""
    trained = {name: parameter.detach() for name, parameter in named.items()}
    return parse_state(*dump_state(TrainState(global_step=9, trained=trained, optimizer=state))).optimizer


def same(one, other):
    numbers = (one.updates, one.numbers, one.slots.keys()) == (other.updates, other.numbers, other.slots.keys())
    return numbers and all(same_tensors(one, other))


def same_tensors(one, other):
    """Whether they are equal, for each slot of each parameter."""
    return [
        torch.equal(tensor, other.slots[slot][name]) for slot in one.slots for name, tensor in one.slots[slot].items()
    ]


@pytest.mark.parametrize("updates", [0, 3])
def test_the_state_has_each_slot_of_each_parameter(name, updates):
    named = parameters()
    optimizer = make(name, named)
    train(optimizer, named, 0, updates)
    state = optimizer.state()
    expected = expected_of(ROWS[name].layout, named)
    assert state.updates == updates and kinds(state.slots) == kinds(expected)
    assert not {"adapter", "initial", "ema"} & state.slots.keys(), "these are other parts of the state's file"
    for slot, tensors in state.slots.items():
        assert all(bool(tensor.any()) == (updates > 0 or slot in NOT_ZERO) for tensor in tensors.values())


def kinds(slots):
    return {slot: {name: (one.shape, one.dtype) for name, one in own.items()} for slot, own in slots.items()}


@pytest.mark.parametrize("of_whole_model", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 4, 10])
def test_cut_and_continued_has_the_same_bits(name, cut, of_whole_model):
    whole = parameters()
    uninterrupted = make(name, whole, whole=of_whole_model)
    train(uninterrupted, whole, 0, 10)

    before = parameters()
    optimizer = make(name, before, whole=of_whole_model)
    train(optimizer, before, 0, cut)
    after = {key: torch.nn.Parameter(parameter.detach().clone()) for key, parameter in before.items()}
    continued = make(name, after, whole=of_whole_model)
    continued.restore(through_a_file(optimizer.state(), before))
    train(continued, after, cut, 10)

    assert all(torch.equal(after[key], whole[key]) for key in whole)
    assert not torch.equal(whole["a"], parameters()["a"]), "something was trained"
    assert same(continued.state(), uninterrupted.state())


@pytest.mark.parametrize("of_whole_model", [False, True])
def test_beginning_changes_no_bit(name, of_whole_model):
    """Whether it is called never, before each update, or also after a restart; a parameter may have no gradient yet."""

    def update(optimizer, named, start, stop, *, begins):
        for step in range(start, stop):
            if begins:
                optimizer.begin()
            own = {key: g for key, g in by_name(named, step).items() if key != "c" or step > 1}
            optimizer.update(own, [1.0, 1.0])

    plain, begun = parameters(), parameters()
    one, other = make(name, plain, whole=of_whole_model), make(name, begun, whole=of_whole_model)
    update(one, plain, 0, 4, begins=False)
    update(other, begun, 0, 2, begins=True)
    saved = through_a_file(other.state(), begun)
    other = make(name, begun, whole=of_whole_model)
    other.restore(saved)
    update(other, begun, 2, 4, begins=True)
    assert same(one.state(), other.state()) and all(torch.equal(plain[key], begun[key]) for key in plain)


def test_what_is_restored_is_taken_over(name):
    """A copy would be as large as the model, or larger."""
    named = parameters()
    optimizer = make(name, named)
    train(optimizer, named, 0, 1)
    saved = through_a_file(optimizer.state(), named)
    optimizer.restore(saved)
    for slot, tensors in optimizer.state().slots.items():
        assert all(tensor.data_ptr() == saved.slots[slot][key].data_ptr() for key, tensor in tensors.items())


@pytest.mark.parametrize("shares", [("abcde", ""), ("a", "bcde"), ("bd", "ace"), ("a", "b", "c", "d", "e")])
def test_parameters_divided_among_several_have_the_bits_of_one(name, shares):
    """Whole models: each process updates some of the parameters, and may have none."""
    together, apart = parameters(), parameters()
    one = make(name, together, whole=True)
    train(one, together, 0, 5)

    def share_of(processes):
        def total(values, length):
            everywhere = processes.exchange(values)
            return alone({key: value for own in everywhere for key, value in own.items()}, length)

        share = shares[processes.rank]
        optimizer = make(name, {key: apart[key] for key in share}, whole=True, total=total)
        for step in range(5):
            own = {key: gradient for key, gradient in by_name(apart, step).items() if key in share}
            optimizer.update(own, rates(step))
        return optimizer.state()

    for share, state in zip(shares, in_threads(len(shares), share_of), strict=True):
        assert state.updates == 5 and set().union(*state.slots.values()) == set(share)
        assert state.numbers == one.state().numbers
    assert all(torch.equal(together[key], apart[key]) for key in together)


@pytest.mark.parametrize("of_whole_model", [False, True])
@pytest.mark.parametrize("having", [(), (0, 1, 2, 3), (3,), (0, 2, 5)])
def test_a_parameter_without_a_gradient_is_left_as_it_is(name, of_whole_model, having):
    """It is not decayed. When it has a gradient in some steps only, cut and continued still has the same bits."""

    def update(optimizer, named, start, stop):
        for step in range(start, stop):
            before = named["c"].detach().clone()
            own = {key: g for key, g in by_name(named, step).items() if key != "c" or step in having}
            optimizer.update(own, [1.0, 1.0])
            assert torch.equal(named["c"], before) == (step not in having)

    named = parameters()
    whole = make(name, named, whole=of_whole_model)
    update(whole, named, 0, 6)
    parts = parameters()
    saved = through_a_file(make(name, parts, whole=of_whole_model).state(), parts)
    for step in range(6):
        optimizer = make(name, parts, whole=of_whole_model)
        optimizer.restore(saved)
        update(optimizer, parts, step, step + 1)
        saved = through_a_file(optimizer.state(), parts)
    assert all(torch.equal(named[key], parts[key]) for key in named) and same(whole.state(), saved)


def test_its_state_takes_no_memory(name):
    named = parameters()
    optimizer = make(name, named)
    train(optimizer, named, 0, 1)
    first, before = optimizer.state(), through_a_file(optimizer.state(), named)
    train(optimizer, named, 1, 2)
    for state in (first, before):
        for slot in NOT_ZERO & state.slots.keys():
            del state.slots[slot]
    assert not any(same_tensors(first, before)), "every tensor follows the update"
    assert all(same_tensors(first, optimizer.state()))


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype", "no slot", "another slot"])
def test_foreign_state_is_refused_by_name(name, change):
    named = parameters()
    optimizer = make(name, named)
    state = optimizer.state()
    slots = {slot: dict(tensors) for slot, tensors in state.slots.items()}
    first = [slot for slot, tensors in slots.items() if "c" in tensors][-1]
    words = f"{first} .* parameter c$"
    tensor = slots[first].pop("c")
    if change == "more":
        slots[first] |= {"c": tensor, "bb": tensor}
        words = f"{first} .* parameter bb$"
    elif change == "shape":
        slots[first]["c"] = tensor[:1]
    elif change == "dtype":
        slots[first]["c"] = tensor.to(torch.float64)
    elif change == "no slot":
        del slots[first]
        words = f"another optimizer .{first}"
    elif change == "another slot":
        slots[first]["c"] = tensor
        slots["stranger"] = slots[first]
        words = "another optimizer .stranger"
    with pytest.raises(CheckpointError, match=words):
        optimizer.restore(OptimizerState(slots, state.updates, state.numbers))


def test_foreign_numbers_are_refused(name):
    optimizer = make(name, parameters())
    state = optimizer.state()
    with pytest.raises(CheckpointError, match="another optimizer \\(momentum"):
        optimizer.restore(OptimizerState(state.slots, state.updates, state.numbers | {"momentum": 1.0}))


def test_a_rate_beyond_float32_changes_nothing(name):
    named = parameters()
    with pytest.raises(NonFiniteError, match="beyond float32"):
        make(name, named).update(by_name(named, 0), [1e308, 1e308])
    assert all(torch.equal(named[key], parameter) for key, parameter in parameters().items())
