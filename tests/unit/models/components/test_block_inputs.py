"""Inputs of blocks that wait in main memory: which are moved, when they come back, and that they are the same."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from engine.models.components import block_inputs
from engine.models.components.block_inputs import BlockInputs

CPU = torch.device("cpu")
WIDTH, DEPTH = 16, 5


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.given = []
        """Of each call: weak references to its arguments' storages, their places there, and their values."""

    def forward(self, x, shared):
        self.given.append([(weakref.ref(one.untyped_storage()), layout(one), one.tolist()) for one in (x, shared)])
        return self.linear(x).sin() + shared


class Pair(Block):
    """Gives back two views of one tensor."""

    def forward(self, x, y):
        super().forward(x, y[:, :1])
        both = self.linear(torch.cat([x, y], 1)).sin()
        return both[:, : x.shape[1]], both[:, x.shape[1] :]


def layout(tensor):
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.data_ptr() % 64


@pytest.fixture
def moves(monkeypatch):
    """The copies to main memory ("out") and back, with the number of the input."""
    found, number = [], []

    class Recorded(block_inputs.MainMemory):
        def copy_from(self, source):
            number.append(self)
            found.append(("out", len(number) - 1))
            super().copy_from(source)

        def copy_to(self, target):
            found.append(("back", number.index(self)))
            super().copy_to(target)

    monkeypatch.setattr(block_inputs, "MainMemory", Recorded)
    return found


def blocks_of(kind=Block):
    torch.manual_seed(0)
    return [kind() for _ in range(DEPTH)]


def call(inputs, block, *args):
    def compute():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    return compute() if inputs is None else inputs.offloaded(compute)


def hidden():
    return torch.linspace(-1, 1, 3 * WIDTH).view(1, 3, WIDTH)


def forward(blocks, inputs):
    x, shared = hidden(), torch.linspace(0, 1, WIDTH).view(1, 1, WIDTH)
    for block in blocks:
        x = call(inputs, block, x, shared)
    return x


def gradients(blocks, output):
    return torch.autograd.grad(output.square().sum(), [parameter for one in blocks for parameter in one.parameters()])


@pytest.mark.parametrize("is_offloaded", [True, False])
def test_between_the_passes_none_of_them_is_on_the_device(is_offloaded):
    blocks = blocks_of()
    output = forward(blocks, BlockInputs(CPU) if is_offloaded else None)
    gc.collect()
    alive = [block.given[0][0][0]() is not None for block in blocks]
    assert output.requires_grad and alive == [not is_offloaded] * DEPTH


def test_they_come_back_one_block_ahead_and_shared_arguments_stay(moves):
    blocks, inputs, computed = blocks_of(), BlockInputs(CPU), []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: computed.append(len(moves)))
    for step in range(2):
        moves.clear()
        output = forward(blocks, inputs)
        first = step * DEPTH
        assert moves == [("out", first + k) for k in range(DEPTH)]
        moves.clear()
        computed.clear()
        gradients(blocks, output)
        assert moves == [("back", first + k) for k in reversed(range(DEPTH))]
        assert computed == [2, 3, 4, 5, 5], "two before the last block is computed again, then one for each"


@pytest.mark.parametrize("kind", [Block, Pair])
def test_the_bits_and_the_places_in_memory_are_the_same(kind):
    found = []
    for inputs in (None, BlockInputs(CPU)):
        blocks = blocks_of(kind)
        if kind is Pair:
            x, y = hidden().expand(2, 3, WIDTH).contiguous(), torch.ones(2, 2, WIDTH)
            for block in blocks:
                x, y = call(inputs, block, x, y)
            output = torch.cat([x, y], 1)
        else:
            output = forward(blocks, inputs)
        found.append([gradient.tolist() for gradient in gradients(blocks, output)])
        for block in blocks:
            before, again = block.given
            assert [one[1:] for one in before] == [one[1:] for one in again]
    assert found[0] == found[1]


def test_a_part_of_a_larger_tensor_stays(moves):
    """To move it would free nothing."""
    larger, block = torch.zeros(2, 3, WIDTH), Block()
    call(BlockInputs(CPU), block, larger[:1], torch.zeros(1, 1, WIDTH))
    assert moves == []


def test_two_views_of_a_tensor_are_moved_together(moves):
    blocks, inputs = blocks_of(Pair), BlockInputs(CPU)
    x, y = torch.zeros(2, 3, WIDTH), torch.ones(2, 2, WIDTH)
    for block in blocks[:2]:
        x, y = call(inputs, block, x, y)
    assert len(moves) == 2 + 1


def test_a_backward_pass_that_never_comes_leaves_nothing(moves):
    inputs = BlockInputs(CPU)
    forward(blocks_of(), inputs)
    gc.collect()
    assert inputs._latest() is None
    with torch.no_grad():
        forward(blocks_of(), inputs)
    assert len(moves) == DEPTH
