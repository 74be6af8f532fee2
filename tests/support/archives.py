"""Archives built in memory, and what unpacking one leaves or says."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.fetch.archive import extract

LIMITS = Limits(max_dataset_bytes=32 << 20, ratio_free_bytes=1 << 20, max_files=1000)
FILES = {"metadata.jsonl": b'{"file_name": "1.png", "text": "a"}\n', "1.png": b"\x89PNG image"}


def zip_of(files: dict, **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.pop("method", zipfile.ZIP_DEFLATED), **options) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def tar_of(files: dict, format=tarfile.PAX_FORMAT) -> bytes:
    """A value may be bytes, or a dictionary of the header's fields."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            fields = data if isinstance(data, dict) else {"size": len(data), "mode": 0o6777}
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info, io.BytesIO(b"" if isinstance(data, dict) else data))
    return buffer.getvalue()


def zip_with(name: str, data: bytes = b"x", **fields) -> bytes:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    for field, value in fields.items():
        setattr(info, field, value)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(info, data)
    return buffer.getvalue()


def pages(tmp_path, data: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    """What extracting `data` leaves in the folder, by path."""
    archive, into = tmp_path / "archive", tmp_path / "into"
    archive.write_bytes(data)
    into.mkdir()
    extract(archive, into, limits)
    return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def refusal(tmp_path, data: bytes, limits: Limits = LIMITS) -> str:
    before = set(tmp_path.iterdir())
    with pytest.raises(DatasetError) as caught:
        pages(tmp_path, data, limits)
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"archive", "into"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pack(kind: str, data: bytes) -> bytes:
    return {"": lambda d: d, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](data)
