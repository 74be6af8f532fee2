"""Safetensors in pieces: the library's bytes."""

import pytest
import torch
from safetensors.torch import save

from engine.results import safetensors_stream


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1.5), 'ä"\n': torch.zeros(0, 4)},
        {f"{n}": torch.full((n,), float(n)) for n in range(12)},
    ],
    ids=["none", "shapes and names", "order"],
)
def test_together_they_are_the_librarys(tensors):
    assert b"".join(safetensors_stream.pieces(tensors)) == save(tensors)


def test_a_view_is_written_as_it_reads():
    tensor = torch.arange(12.0).reshape(3, 4)[:, ::2]
    assert b"".join(safetensors_stream.pieces({"a": tensor})) == save({"a": tensor.contiguous()})
