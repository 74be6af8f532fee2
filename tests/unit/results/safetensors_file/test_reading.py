"""Files that anybody may have written: read once, into memory of their own, and refused by one of two errors."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save

from engine.results.safetensors_file import encode_header
from engine.results.safetensors_file.reading import DamagedFileError, open_file, read
from tests.support.states import BytesReader

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(3.0, dtype=torch.float16),
}


def read_bytes(data, sha256=None, **options):
    return read(BytesReader(data, most=5), sha256 or hashlib.sha256(data).hexdigest(), **options)


def file(entries, body=b"", **more):
    """A file with this header; `entries` has dtype, shape and offsets by name."""
    header = {name: dict(zip(("dtype", "shape", "data_offsets"), one, strict=True)) for name, one in entries.items()}
    return encode_header(header | more) + body


class TestGoodFiles:
    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_there_and_back(self, tmp_path, metadata):
        data = save(TENSORS, metadata)
        (tmp_path / "file").write_bytes(data)
        with open_file(tmp_path / "file") as reader:
            found = read(reader, hashlib.sha256(data).hexdigest())
        assert found.keys() == TENSORS.keys()
        for one in (found, read_bytes(data)):
            assert all(torch.equal(one[name], tensor) for name, tensor in TENSORS.items())
            assert all(one[name].dtype == tensor.dtype for name, tensor in TENSORS.items())

    def test_tensors_that_are_not_wanted_are_hashed_only(self):
        data = save(TENSORS | {"e": torch.zeros(3, dtype=torch.int64)})
        assert read_bytes(data, wanted=lambda name, entry: name == "b").keys() == {"b"}
        with pytest.raises(DamagedFileError):
            read_bytes(data[:-1] + b"\1", hashlib.sha256(data).hexdigest(), wanted=lambda name, entry: name == "b")


@pytest.mark.parametrize("position", range(0, len(save(TENSORS)), 3))
def test_damage_is_told_from_malice(position):
    """Whatever a flipped bit does to the header."""
    data = bytearray(save(TENSORS))
    digest = hashlib.sha256(data).hexdigest()
    data[position] ^= 0x10
    with pytest.raises(DamagedFileError):
        read_bytes(bytes(data), digest)
    with pytest.raises(DamagedFileError):
        read_bytes(bytes(data[:position]), digest)


F32 = ("F32", [1], [0, 4])
DEEP = b"[" * 10_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        (1 << 60).to_bytes(8, "little") + b"{}",
        (17 << 20).to_bytes(8, "little") + b"{}",
        len(DEEP).to_bytes(8, "little") + DEEP,
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + '"{'.encode("utf-16-le"),
        file({}, b"rest"),
        file({"a": F32}, b"1234rest"),
        file({"a": F32}, b"123"),
        file({"a": ("F32", [2], [0, 4])}, b"1234"),
        file({"a": ("F32", [-1], [0, 4])}, b"1234"),
        file({"a": ("F32", [True], [0, 4])}, b"1234"),
        file({"a": ("F32", [1.0], [0, 4])}, b"1234"),
        file({"a": ("F32", "1", [0, 4])}, b"1234"),
        file({"a": ("F32", [1] * 17, [0, 4])}, b"1234"),
        file({"a": ("F32", [0, 1 << 62, 1 << 62], [0, 0])}),
        file({"a": ("F32", [1 << 64], [0, 1 << 66])}),
        file({"a": ("F32", [1], [4, 0])}, b"1234"),
        file({"a": ("F32", [1], [0, 4, 4])}, b"1234"),
        file({"a": ("f32", [1], [0, 4])}, b"1234"),
        file({"a": ([], [1], [0, 4])}, b"1234"),
        file({"a": ("I64", [1], [0, 8])}, b"12345678"),
        file({"a": F32, "b": F32}, b"1234"),
        file({"a": F32, "b": ("F32", [1], [8, 12])}, b"1" * 12),
        file({"a": F32, "b": ("F32", [1], [2, 6])}, b"1" * 6),
        file({"a": F32}, b"1234", b=1),
        file({}, b"1234", a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}),
        encode_header({"a": 0}).replace(b'{"a":0}', b'{"a":0,"a":0}'),
        (9).to_bytes(8, "little") + b'{"a":NaN}',
        (len(b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}')).to_bytes(8, "little")
        + b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    ],
)  # fmt: skip
def test_a_malformed_file(data):
    with pytest.raises(ValueError):
        read_bytes(data)


def test_a_name_twice():
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    text = (text[:-1] + "," + text[1:]).encode()
    with pytest.raises(ValueError, match="repeats a name"):
        read_bytes(len(text).to_bytes(8, "little") + text + b"1234")
