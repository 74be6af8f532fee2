"""Parquet and Arrow files whose types, indices and claims lie: what C++ reads before anything checks it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.hostile.case import MIB, Cases
from tests.integration.hostile.models import PICKLE
from tests.integration.hostile.tables import CELL, GOOD_PARQUET, arrow, local, parquet
from tests.support.tiny import SMALL_PNG

METADATA = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLE}


def stream(schema: pa.Schema, *columns: pa.Array) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        writer.write_batch(pa.record_batch(list(columns), schema=schema))
    return buffer.getvalue()


def extension() -> pa.Schema:
    """A type that pyarrow before 14.0.1 unpickled (CVE-2023-47248)."""
    return pa.schema([pa.field("image", pa.binary(), metadata=METADATA), pa.field("text", pa.string())])


def extension_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table([[SMALL_PNG], ["a"]], schema=extension()), buffer)
    return buffer.getvalue()


def nested(levels: int) -> pa.DataType:
    kind: pa.DataType = pa.string()
    for _ in range(levels):
        kind = pa.list_(kind)
    return kind


def nested_columns(levels: int) -> pa.Table:
    return pa.table({"image": [SMALL_PNG], "text": ["a"], "x": pa.nulls(1, nested(levels))})


def nested_parquet(levels: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(nested_columns(levels), buffer, store_schema=False)
    return buffer.getvalue()


def wide(count: int) -> dict[str, list[object]]:
    return {"image": [SMALL_PNG], "text": ["a"], **{f"x{index}": [0] for index in range(count)}}


def dictionary(index: int) -> bytes:
    """Captions by number, with a number that none has."""
    column = pa.DictionaryArray.from_arrays(pa.array([0, index], pa.int32()), pa.array(["a", "b"]), safe=False)
    return arrow({"image": [SMALL_PNG] * 2, "text": column})


def claims(data: bytes, old: int, new: int) -> bytes:
    """Every place where the file says `old` in 8 bytes says `new`."""
    return data.replace(struct.pack("<q", old), struct.pack("<q", new))


def compressed_claim() -> bytes:
    """A compressed buffer that says it unpacks to 2**60 bytes."""
    data = arrow({"image": [bytes(100_000)], "text": ["a"]}, compression="lz4")
    assert struct.pack("<q", 100_000) in data
    return claims(data, 100_000, 2**60)


def footer(change: Callable[[bytes], bytes]) -> bytes:
    """A Parquet file with another footer; its length agrees."""
    length = struct.unpack("<I", GOOD_PARQUET[-8:-4])[0]
    body, old = GOOD_PARQUET[: -8 - length], GOOD_PARQUET[-8 - length : -8]
    new = change(old)
    return body + new + struct.pack("<I", len(new)) + b"PAR1"


def feather() -> bytes:
    """Arrow with random access, whose footer is far away."""
    table, buffer = pa.table({"image": [CELL], "text": ["a"]}), io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def footer_length(length: int) -> bytes:
    data = feather()
    return data[:-10] + struct.pack("<i", length) + data[-6:]


CASES: Cases = {
    "an extension type that is a pickle": local(
        lambda: {"t.arrow": stream(extension(), pa.array([SMALL_PNG]), pa.array(["a"]))}, 0, "1 image", quick=True
    ),
    "an extension type that is a pickle, in Parquet": local(lambda: {"t.parquet": extension_parquet()}, 0, "1 image"),
    "lists of lists of lists": local(lambda: {"t.parquet": nested_parquet(60)}, -1),
    "a thousand lists of lists": local(lambda: {"t.parquet": nested_parquet(1000)}, -1),
    "twenty thousand columns": local(lambda: {"t.parquet": parquet(wide(20_000))}, -1, seconds=120, memory=1024 * MIB),
    "a caption that no number has": local(lambda: {"t.arrow": dictionary(7)}, 3, "damaged", quick=True),
    "a caption of a negative number": local(lambda: {"t.arrow": dictionary(-1)}, 3, "damaged"),
    "a caption of a huge number": local(lambda: {"t.arrow": dictionary(2**31 - 1)}, 3, "damaged"),
    "a buffer of an exabyte": local(lambda: {"t.arrow": compressed_claim()}, 3, memory=600 * MIB),
    "a footer of noise": local(lambda: {"t.parquet": footer(lambda old: b"\xff" * len(old))}, 3),
    "a footer of a megabyte of lists": local(lambda: {"t.parquet": footer(lambda _: b"\x19" * MIB)}, 3),
    "a footer of structures in structures": local(lambda: {"t.parquet": footer(lambda _: b"\x1c" * MIB)}, 3),
    "a footer that claims 4 GB": local({"t.parquet": GOOD_PARQUET[:-8] + b"\xff\xff\xff\xff" + b"PAR1"}, 3),
    "a footer of negative length": local(lambda: {"t.arrow": footer_length(-1)}, 3),
    "a footer of 2 GB": local(lambda: {"t.arrow": footer_length(2**31 - 1)}, 3),
    "an encrypted footer": local({"t.parquet": GOOD_PARQUET[:-4] + b"PARE"}, 3),
    "a message of 2 GB": local({"t.arrow": b"\xff\xff\xff\xff" + struct.pack("<i", 2**31 - 1) + bytes(100)}, 3),
    "a message of negative length": local({"t.arrow": b"\xff\xff\xff\xff" + struct.pack("<i", -5) + bytes(100)}, 3),
}
