"""Tables and metadata from strangers: wrong types, wrong text, and rows that name what is not theirs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.hostile.archives import FILES, ROW, tar_of, zip_of
from tests.integration.hostile.case import MIB, Case, Cases, Place
from tests.support.tiny import SMALL_PNG

OPEN = {"ALLOW_PRIVATE_URLS": "1"}
CELL = {"bytes": SMALL_PNG, "path": None}
NAMES = ("metadata.jsonl", "metadata.csv", "t.jsonl", "t.parquet", "t.arrow", "struct.parquet")


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def arrow(columns: Mapping[str, Any], compression: str | None = None) -> bytes:
    table, buffer = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_of(header: str, *rows: str) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def naming(value: str, table: str) -> dict[str, bytes]:
    """A dataset of one good row and one that names `value`."""
    rows = [{"file_name": name, "text": "a"} for name in ("1.png", value)]
    columns = {"image": ["1.png", value], "text": ["a", "b"]}
    if table == "metadata.csv":
        data = csv_of("file_name,text", "1.png,a", f'"{value}",b')
    elif table.endswith("jsonl"):
        data = lines(*rows)
    elif table == "struct.parquet":
        data = parquet({**columns, "image": [{"bytes": None, "path": path} for path in columns["image"]]})
    else:
        data = parquet(columns) if table.endswith("parquet") else arrow(columns)
    return {table: data, "1.png": SMALL_PNG}


def by_url(files: Callable[[Place], Mapping[str, bytes]], code: int, *words: str, **options: Any) -> Case:
    """A downloaded dataset of these files."""

    def make(place: Place) -> Mapping[str, object]:
        return {"dataset": {"url": place.server.url(zip_of(dict(files(place))))}}

    return Case(make=make, code=code, words=words, connects=True, variables=OPEN, **options)


def local(
    files: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]], code: int, *words: str, **options: Any
) -> Case:
    """A folder of these files."""

    def make(place: Place) -> Mapping[str, object]:
        for name, data in (files() if callable(files) else files).items():
            path = place.inputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return {"dataset": {"name": str(place.inputs)}, **options.get("changes", {})}

    return Case(make=make, code=code, words=words, **{key: value for key, value in options.items() if key != "changes"})


def served(data: Callable[[], bytes], code: int, *words: str, **options: Any) -> Case:
    """A single file behind a URL."""

    def make(place: Place) -> Mapping[str, object]:
        return {"dataset": {"url": place.server.url(data())}}

    return Case(make=make, code=code, words=words, connects=True, variables=OPEN, **options)


OUTSIDE = {
    "an absolute path": "{root}/secret.png",
    "up": "../../../../../secret.png",
    "up and down": "a/../../secret.png",
    "http": "http://127.0.0.1:{port}/0",
    "https": "https://example.org/x.png",
    "file:": "file://{root}/secret.png",
    "zip://": "zip://1.png::{root}/x.zip",
    "a chain": "simplecache::http://127.0.0.1:{port}/0",
    "hf://": "hf://datasets/a/b/1.png",
    "data:": "data:image/png;base64,AAAA",
}


def reaching(value: str, table: str) -> Callable[[Place], Mapping[str, bytes]]:
    return lambda place: naming(value.format(root=place.root, port=place.server.port), table)


def linked(place: Place) -> Mapping[str, object]:
    """A link in a local folder of a stranger's is followed, as its owner may want; one out of a download is not."""
    (place.inputs / "metadata.jsonl").write_bytes(ROW)
    (place.inputs / "1.png").symlink_to("/dev/zero")
    return {"dataset": {"name": str(place.inputs)}}


def piped(place: Place) -> Mapping[str, object]:
    (place.inputs / "metadata.jsonl").write_bytes(ROW)
    os.mkfifo(place.inputs / "1.png")
    return {"dataset": {"name": str(place.inputs)}}


def piped_table(place: Place) -> Mapping[str, object]:
    os.mkfifo(place.inputs / "metadata.jsonl")
    return {"dataset": {"name": str(place.inputs)}}


def circular(place: Place) -> Mapping[str, object]:
    (place.inputs / "metadata.jsonl").symlink_to("metadata.jsonl")
    return {"dataset": {"name": str(place.inputs)}}


def sparse_table(place: Place) -> Mapping[str, object]:
    """A terabyte of nothing."""
    (place.inputs / "1.png").write_bytes(SMALL_PNG)
    with (place.inputs / "metadata.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    return {"dataset": {"name": str(place.inputs)}}


def parquet_bomb() -> bytes:
    """One image of 8 MB, 4,000 times: 32 GB of rows in a few kilobytes."""
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([bytes(8 * MIB)]))
    columns = {"image": image, "text": ["a"] * 4000}
    return parquet(columns, compression="zstd", store_schema=False, dictionary_pagesize_limit=64 * MIB)


def parquet_text_bomb() -> bytes:
    """One path of 4 MB, 4,000 times."""
    path = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["a" * 4 * MIB]))
    columns = {"image": path, "text": ["a"] * 4000}
    return parquet(columns, compression="zstd", store_schema=False, dictionary_pagesize_limit=64 * MIB)


def arrow_bomb() -> bytes:
    """2.5 GB of zeros in a compressed Arrow stream."""
    return arrow({"image": [bytes(256 * MIB)] * 10, "text": ["a"] * 10}, compression="zstd")


def twice() -> bytes:
    buffer = io.BytesIO()
    columns = [pa.array([SMALL_PNG]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "text", "text"]), buffer)
    return buffer.getvalue()


def flipped(data: bytes, where: float) -> bytes:
    at = int(len(data) * where)
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def row(**values: Any) -> dict[str, bytes]:
    return {"metadata.jsonl": ROW + lines({"file_name": "1.png", "text": "a"} | values), "1.png": SMALL_PNG}


def table(**columns: Sequence[Any]) -> dict[str, bytes]:
    return {"t.parquet": parquet(columns)}


GOOD_PARQUET = parquet({"image": [CELL] * 3, "text": ["a"] * 3})
GOOD_ARROW = arrow({"image": [CELL] * 3, "text": ["a"] * 3})
CASES: Cases = {
    **{
        f"{what} in {name}": by_url(
            reaching(value, name),
            3,
            "row 1",
            quick=(what, name) in {("file:", "struct.parquet"), ("up", "metadata.csv")},
        )
        for what, value in OUTSIDE.items()
        for name in NAMES
    },
    **{
        f"{what} in a local table": local(
            naming(value.format(root="/", port=1), "metadata.jsonl"), 3, "not downloaded one by one"
        )
        for what, value in OUTSIDE.items()
        if ":" in value
    },
    "an image that is a device": Case(make=linked, code=3, words=("readable",), train=True),
    "an image that is a pipe": Case(make=piped, code=3, words=("readable",), train=True),
    "a table that is a pipe": Case(make=piped_table, code=3),
    "a table that is a link to itself": Case(make=circular, code=3),
    "a table of a terabyte of zeros": Case(make=sparse_table, code=3, words=("line 1",)),
    "a number for a caption": local(row(text=5), 3, "row 1", "5", quick=True),
    "null for a caption": local(row(text=None), 3, "row 1"),
    "an object for a caption": local(row(text={"a": 1}), 3, "row 1"),
    "a list of lists for a caption": local(row(text=[["a"]]), 3, "row 1"),
    "a number for an image": local(row(file_name=5), 3, "row 1"),
    "null for an image": local({**row(file_name=None)}, 0, "2 images"),
    "a NUL in a path": local(row(file_name="1\0.png"), 0, "2 images"),
    "a path of a megabyte": local(row(file_name="a" * MIB), 0, "2 images"),
    "an empty path": local(row(file_name=""), 0, "2 images"),
    "a line of 20 MB": local(
        lambda: {**FILES, "metadata.jsonl": lines({"file_name": "1.png", "text": "a" * 20 * MIB})}, 3
    ),
    "deep JSON": local({"metadata.jsonl": b'{"a":' * 100_000}, 3, "line 1"),
    "deep JSON in a list": local({"t.json": b"[" * 200_000}, 3, "t.json"),
    "endless digits": local({"metadata.jsonl": b'{"file_name": "1.png", "text": ' + b"1" * 10_000 + b"}"}, 3),
    "half a character": local({"metadata.jsonl": b'{"file_name": "1.png", "text": "\\ud800"}'}, 3, "Unicode"),
    "a caption that is not UTF-8": local({"metadata.jsonl": b'{"file_name": "1.png", "text": "\xff"}'}, 3),
    "a CSV in Latin-1": local({"metadata.csv": "file_name,text\n1.png,\xe9\n".encode("latin-1")}, 3),
    "a CSV with a NUL": local({"metadata.csv": b"file_name,text\n1.png,a\0b\n", "1.png": SMALL_PNG}, 0, "1 image"),
    "a CSV with an open quote": local({"metadata.csv": b'file_name,text\n1.png,"' + b"a" * 2 * MIB}, 3),
    "a CSV with more fields": local({"metadata.csv": b"file_name,text\n1.png,a,b\n"}, 3, "line 2"),
    "a CSV of a million columns": local(lambda: {"metadata.csv": b",".join(b"%d" % i for i in range(10**6))}, 3),
    "numbers for images": local(table(image=[1], text=["a"]), 3, "'image'", "int64"),
    "numbers for captions": local(table(image=[CELL], text=[1]), 3, "'text'", "int64"),
    "times for captions": local(table(image=[CELL], text=[pa.scalar(0, pa.timestamp("s"))]), 3, "'text'"),
    "null captions": local(table(image=[CELL], text=pa.nulls(1)), 3, "no caption"),
    "bytes for captions": local(table(image=[CELL], text=[b"a"]), 3, "'text'"),
    "a column twice": local(lambda: {"t.parquet": twice()}, 3, "several columns"),
    "no rows": local(table(image=pa.array([], pa.binary()), text=pa.array([], pa.string())), 3, "no rows"),
    "a Parquet file that is a page": local({"t.parquet": b"<html>"}, 3, "t.parquet"),
    "an Arrow file that is a page": local({"t.arrow": b"<html>"}, 3, "t.arrow"),
    "half a Parquet file": local({"t.parquet": GOOD_PARQUET[: len(GOOD_PARQUET) // 2]}, 3, "t.parquet"),
    "half an Arrow file": local({"t.arrow": GOOD_ARROW[: len(GOOD_ARROW) // 2]}, 3, "t.arrow"),
    "a Parquet bomb": served(parquet_bomb, 3, memory=2300 * MIB, seconds=120, quick=True),
    "a Parquet bomb of paths": served(parquet_text_bomb, 3, "memory", memory=2300 * MIB, seconds=120),
    "an Arrow bomb": served(arrow_bomb, 3, "memory", memory=2300 * MIB, seconds=120),
    "a WebDataset with a text of 10 MB": served(
        lambda: tar_of(("1.txt", b"a" * 10 * MIB), ("1.png", SMALL_PNG), usual=False), 3
    ),
    "a WebDataset with a name twice": served(
        lambda: tar_of(("1.txt", b"a"), ("1.png", SMALL_PNG), ("1.png", SMALL_PNG), usual=False), 3, "twice"
    ),
    "saved files elsewhere": local({"state.json": b'{"_data_files": [{"filename": "../x.arrow"}]}'}, 3, "state.json"),
    "splits elsewhere": local({"dataset_dict.json": b'{"splits": ["../x"]}'}, 3, "dataset_dict.json"),
    "a configuration elsewhere": local(FILES, 3, "config_name", changes={"dataset.config_name": "../.."}),
    "a configuration that is absolute": local(FILES, 3, "config_name", changes={"dataset.config_name": "/etc"}),
    "a name with escape codes": local({"metadata.jsonl": b"{", "\x1b[31mred\n.png": b""}, 3),
}


for _step in range(24):
    _where = (_step + 0.5) / 24
    for _name, _good in (("t.parquet", GOOD_PARQUET), ("t.arrow", GOOD_ARROW)):
        CASES[f"{_name}, flipped at {_where:.0%}"] = local({_name: flipped(_good, _where)}, -1)
