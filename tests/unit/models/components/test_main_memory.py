"""Bytes that a device copies to main memory and back."""

import pytest
import torch

from engine.models.components.main_memory import MainMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize("size, pieces", [((37 << 20) + 512, [32, 4, 1, 0]), (5, [0]), (1 << 20, [1]), (0, [])])
def test_its_pieces_are_powers_of_two_and_hold_all_bytes(size, pieces):
    source = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    memory, target = MainMemory(size, CPU), torch.zeros(size, dtype=torch.uint8)
    memory.copy_from(source)
    memory.copy_to(target)
    assert torch.equal(target, source) and memory.size == size
    assert [len(piece) >> 20 for piece in memory._pieces] == pieces
