"""Safetensors in pieces: the library's bytes."""

import pytest
import torch
from safetensors.torch import save

from engine.results import safetensors_file


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
    assert b"".join(safetensors_file.pieces(tensors)) == save(tensors)


def test_a_view_is_written_as_it_reads():
    tensor = torch.arange(12.0).reshape(3, 4)[:, ::2]
    assert b"".join(safetensors_file.pieces({"a": tensor})) == save({"a": tensor.contiguous()})


def test_a_file_is_split_into_header_and_tensors():
    data = save({"a": torch.arange(3.0), "b": torch.ones(2, 2)}, metadata={"key": "value"})
    header, body = safetensors_file.split(data)
    assert header.keys() == {"__metadata__", "a", "b"} and header["a"]["shape"] == [3]
    assert bytes(body) == torch.arange(3.0).numpy().tobytes() + torch.ones(2, 2).numpy().tobytes()
    # An encoded header may be padded otherwise than the library's, but a reader finds the same in it.
    assert safetensors_file.split(safetensors_file.encode_header(header) + bytes(body)) == (header, body)
