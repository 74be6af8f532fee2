"""The training state: exact in both directions, and nothing else is let in."""

import json
import math

import pytest
import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from engine.core.errors import CheckpointError
from engine.core.files import atomic_files
from engine.results import safetensors_file
from engine.results.safetensors_file import Source
from engine.results.state import (
    DamagedStateError,
    LossScale,
    OptimizerState,
    TrainState,
    flatten_state,
    read_along,
    read_state,
    state_files,
)
from tests.support.states import dump_state, parse_state

NAMES = ("a.lora_A.weight", "a.lora_B.weight", "b.c.0.lora_A.weight")


def tensors(seed, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(2, 3 + i, generator=draw) for i, name in enumerate(NAMES)}


def squares(seed, size=1.0):
    return {name: tensor.abs() for name, tensor in tensors(seed, size).items()}


def slots_of(exp_avg, exp_avg_sq, updates):
    return OptimizerState({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, updates)


def make(**changes):
    values = {
        "global_step": 7,
        "trained": tensors(0),
        "optimizer": slots_of(tensors(1, 1e-30), squares(2, 1e30), 5),
        "start": tensors(3),
        "loss_scale": LossScale(1024.0, 3),
    }
    return TrainState(**(values | changes))


def with_codes(**changes):
    """A state with codes of odd numbers of bytes, between tensors of float32, and numbers."""

    def codes():
        return {name: torch.arange(tensor.numel() - 1, dtype=torch.uint8) for name, tensor in tensors(0).items()}

    slots = {"codes": codes(), "scales": tensors(1), "bcodes": codes()}
    return make(optimizer=OptimizerState(slots, 5, {"d": 0.1 + 0.2, "r": -1e-300}), **changes)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one
    )


@pytest.mark.parametrize(
    "state",
    [
        make(),
        with_codes(),
        make(start={}, loss_scale=None, global_step=0, optimizer=slots_of(tensors(1), squares(2), 0)),
        make(loss_scale=LossScale(1.5e-3, 1999), global_step=2**62),
        make(
            trained={NAMES[0]: torch.tensor([[-0.0, 1e-45, 3e38]])},
            optimizer=slots_of({NAMES[0]: torch.zeros(1, 3)}, {NAMES[0]: torch.zeros(1, 3)}, 1),
        ),
    ],
)
def test_there_and_back_is_exact(state):
    data, scalars = dump_state(state)
    found = parse_state(data, json.loads(json.dumps(scalars)))
    assert same(found.trained, state.trained) and same(found.start, state.start)
    assert found.optimizer.slots.keys() == state.optimizer.slots.keys()
    assert all(same(found.optimizer.slots[slot], named) for slot, named in state.optimizer.slots.items())
    assert (found.global_step, found.optimizer.updates, found.optimizer.numbers, found.loss_scale) == (
        state.global_step,
        state.optimizer.updates,
        state.optimizer.numbers,
        state.loss_scale,
    )
    assert dump_state(found) == (data, scalars)


def test_codes_come_last_so_that_the_others_are_aligned():
    """The bytes are the library's."""
    data, scalars = dump_state(with_codes())
    assert data == serialise_tensors(flatten_state(with_codes())[0])
    assert scalars["optimizer_numbers"] == {"d": 0.1 + 0.2, "r": -1e-300}
    assert "optimizer_numbers" not in dump_state(make())[1]


def test_bytes_do_not_depend_on_order():
    shuffled = make(trained=dict(reversed(tensors(0).items())))
    assert dump_state(shuffled) == dump_state(make())


def test_parsed_tensors_own_their_memory():
    data = bytearray(dump_state(make())[0])
    found = parse_state(bytes(data), dump_state(make())[1])
    storages = [
        tensor.untyped_storage()
        for group in (found.trained, *found.optimizer.slots.values(), found.start)
        for tensor in group.values()
    ]
    assert len({storage.data_ptr() for storage in storages}) == len(storages) == 12
    assert all(storage.data_ptr() % 64 == 0 for storage in storages), "aligned as torch's own allocations are"
    assert sorted({storage.nbytes() for storage in storages}) == [24, 32, 40]


def with_tensor(key, value):
    def change(found, scalars):
        found[key] = value

    return change


def with_scalars(**changes):
    return lambda found, scalars: scalars.update(changes)


SHAPE = (2, 3)


@pytest.mark.parametrize(
    "change",
    [
        with_tensor("adapter.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.float64)),
        with_tensor("adapter.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.float16)),
        with_tensor("exp_avg.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.int32)),
        with_tensor("exp_avg.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.float16)),
        with_tensor("adapter.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.uint8)),
        with_tensor("ema.a.lora_A.weight", torch.zeros(SHAPE, dtype=torch.uint8)),
        with_tensor("adapter.a.lora_A.weight", torch.full(SHAPE, math.nan)),
        with_tensor("exp_avg.a.lora_A.weight", torch.full(SHAPE, math.inf)),
        with_tensor("exp_avg_sq.a.lora_A.weight", torch.full(SHAPE, -math.inf)),
        with_tensor("initial.a.lora_A.weight", torch.full(SHAPE, math.nan)),
        *(
            with_scalars(**{key: value})
            for key in ("global_step", "optimizer_step")
            for value in (-1, 1.0, True, "1", None, [])
        ),
        with_scalars(optimizer_step=10**400),
        *(
            with_scalars(loss_scale=value)
            for value in (
                1.0,
                "x",
                [1],
                {"scale": 1.0},
                {"scale": "x", "growth_tracker": 0},
                {"scale": math.nan, "growth_tracker": 0},
                {"scale": 0, "growth_tracker": 0},
                {"scale": -1.0, "growth_tracker": 0},
                {"scale": 10**400, "growth_tracker": 0},
                {"scale": 1.0, "growth_tracker": -1},
                {"scale": 1.0, "growth_tracker": 1.5},
            )
        ),
        *(
            with_scalars(optimizer_numbers=value)
            for value in (None, 1.0, [1.0], {"d": math.nan}, {"d": math.inf}, {"d": 1}, {"d": "1"}, {"d": None})
        ),
        lambda found, scalars: scalars.pop("global_step"),
        lambda found, scalars: scalars.pop("loss_scale"),
    ],
)
def test_anything_else_is_a_checkpoint_error(change):
    data, scalars = dump_state(make())
    found = parse_tensors(data)
    change(found, scalars)
    with pytest.raises(CheckpointError) as caught:
        parse_state(serialise_tensors(found), scalars)
    assert caught.value.code == 5


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 200, -1])
def test_truncated_bytes_are_a_checkpoint_error(cut):
    data, scalars = dump_state(make())
    with pytest.raises(CheckpointError):
        parse_state(data[:cut], scalars)


class TestShards:
    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        """A state of twelve tensors, in files of at most 100 bytes of them."""
        monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", 100)
        files, _ = state_files(make())
        assert len(files) > 2
        return {name: atomic_files.store(tmp_path, pieces()) for name, pieces in files.items()}

    def test_the_same_tensors(self, files):
        assert list(files) == [f"state-{k:05}-of-{len(files):05}.safetensors" for k in range(1, len(files) + 1)]
        found = read_state(files, state_files(make())[1])
        assert same(flatten_state(found)[0], flatten_state(make())[0])

    def test_of_what_another_process_owns_only_the_trained_values_are_kept(self, files):
        whole = make()
        first, *others = whole.trained
        asked = []

        def owned(sizes):
            asked.append(dict(sizes))
            return {first}

        found = read_state(files, state_files(whole)[1], owned=owned)
        assert asked == [{name: tensor.numel() for name, tensor in sorted(whole.trained.items())}] and others
        assert same(found.trained, whole.trained)
        for slot, tensors in whole.optimizer.slots.items():
            assert same(found.optimizer.slots[slot], {first: tensors[first]})
        assert found.ema.keys() == whole.ema.keys() & {first}

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
    def test_a_damaged_one_is_named(self, files, damage):
        name, file = sorted(files.items())[1]
        damage(file.path)
        with pytest.raises(DamagedStateError, match=f"{name}, a file of the training state, is missing or damaged"):
            read_state(files, state_files(make())[1])

    def test_a_tensor_in_two_of_them(self, files):
        name, *_ = files
        with pytest.raises(CheckpointError, match="in two files"):
            read_state({"a": files[name], "b": files[name]}, state_files(make())[1])


def test_what_other_processes_have_is_fetched_in_the_order_in_which_it_is_written():
    calls = []

    def source(name, tensor):
        return Source(tuple(tensor.shape), tensor.dtype, lambda: calls.append(name) or tensor)

    named = {name: source(name, tensor) for name, tensor in reversed(tensors(0).items())}
    state = make(trained=named)
    files, _ = state_files(state)
    assert b"".join(piece for pieces in files.values() for piece in pieces()) == dump_state(make())[0]
    written = list(calls)
    calls.clear()
    read_along(state)
    assert calls == written == sorted(NAMES)


@pytest.mark.parametrize("most", [10**9, 130])
def test_codes_are_fetched_in_the_order_in_which_they_are_written(most, monkeypatch):
    """In shards, too."""
    monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", most)
    calls = []

    def source(name, tensor):
        return Source(tuple(tensor.shape), tensor.dtype, lambda: calls.append(name) or tensor)

    plain = with_codes().optimizer
    slots = {slot: {n: source(f"{slot}.{n}", t) for n, t in own.items()} for slot, own in plain.slots.items()}
    state = make(optimizer=OptimizerState(slots, 5, plain.numbers))
    for pieces in state_files(state)[0].values():
        assert b"".join(pieces())
    written = list(calls)
    calls.clear()
    read_along(state)
    assert calls == written and (written != sorted(written)) and len(written) == 9
