"""Headers of safetensors files, honest and hostile."""

import json
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from engine.core.errors import ModelError
from engine.models.single_file.header import MAX_HEADER_BYTES, Tensor, read_header


def write(path, header, body=b""):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refusal(path):
    with pytest.raises(ModelError) as caught:
        read_header(path, "m.safetensors")
    assert caught.value.code == 4 and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_the_library_writes(tmp_path):
    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.float16),
        "b": torch.arange(5),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "m", metadata={"format": "pt"})
    found = read_header(tmp_path / "m", "m")
    assert found.tensors == {
        "a": Tensor("F16", (2, 3)),
        "b": Tensor("I64", (5,)),
        "scalar": Tensor("F32", ()),
        "empty": Tensor("BF16", (0, 4)),
    }
    assert found.metadata == {"format": "pt"}


def test_an_unknown_dtype_is_left_to_whoever_wants_the_tensor(tmp_path):
    path = write(tmp_path / "m", {"a": entry("F4", (4,), (0, 2))}, b"xx")
    assert read_header(path, "m").tensors == {"a": Tensor("F4", (4,))}


@pytest.mark.parametrize(
    "start, message",
    [
        (b"PK\x03\x04archive/data.pkl", "is a pickled checkpoint.*can run code; convert it to safetensors"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "is a pickle.*can run code; convert it"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file.*use the model's fp16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html>log in</html>", "is a web page.*/resolve/ in place of /blob/"),
        (b"hello, I am a text file", "is not a safetensors file"),
        (b"", "is not a safetensors file"),
        (b"1234567", "is not a safetensors file"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{" + bytes(MAX_HEADER_BYTES + 1), "is not a safetensors file"),
        (struct.pack("<Q", 100) + b'{"a": ', "or it is cut short"),
    ],
)
def test_other_files(tmp_path, start, message):
    (tmp_path / "m").write_bytes(start)
    found = refusal(tmp_path / "m")
    assert re.search(message, found), found


def test_a_file_that_ends_early(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data[:-1])
    assert "is cut short; copy or download it again" in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b'{"a": ' + b"[" * 100_000,
        b"{" + b'"n": 1' + b"0" * 5000 + b"}",
        {"a": 1},
        {"a": {}},
        {"a": entry(shape=(-2,), offsets=(0, 8))},
        {"a": entry(shape=(2.0,))},
        {"a": entry(shape=(True, 2))},
        {"a": entry(shape=("2",))},
        {"a": entry(shape=(10**12,))},
        {"a": entry(offsets=(8, 0))},
        {"a": entry(offsets=(0,))},
        {"a": entry(shape=(3,))},
        {"a": entry(dtype=["F32"])},
        {"__metadata__": ["x"]},
        {"__metadata__": 3, "a": entry()},
    ],
    ids=lambda header: str(header)[:30],
)
def test_malformed_headers(tmp_path, header):
    assert "has a malformed header" in refusal(write(tmp_path / "m", header, bytes(8)))


def test_no_shape_is_larger_than_the_file(tmp_path):
    huge = {"a": entry("F32", (10**9,), (0, 4 * 10**9))}
    assert "is cut short" in refusal(write(tmp_path / "m", huge, bytes(8)))


def test_a_folder_is_no_file(tmp_path):
    assert "cannot be read" in refusal(tmp_path)
