"""Tables: what is read of each kind of file, at which cost, and which files are refused."""

import hashlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError, OutputError
from engine.core.limits import Limits
from tests.support.datasets import (
    arrow_file,
    opened,
    parquet_file,
    parquet_of,
    raw,
    require_refused,
    webdataset_txt,
    write_images,
)

BAD = {
    "not json": (raw("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\nnope\n'), "line 2 of metadata.jsonl"),
    "not an object": (raw("metadata.jsonl", b"[1, 2]"), "expected an object"),
    "deep json": (raw("metadata.jsonl", b'{"a":' + b"[" * 200_000), "line 1"),
    "latin-1": (raw("metadata.csv", "file_name,text\na.png,\xe9\n".encode("latin-1")), "metadata.csv"),
    "unquoted comma": (raw("metadata.csv", b"file_name,text\na.png,x, y\n"), "line 2.*quotes"),
    "doubled header": (raw("metadata.csv", b"text,text\na,b\n"), "two columns"),
    "html as parquet": (raw("t.parquet", b"<html>404</html>"), "t.parquet cannot be read as parquet"),
    "empty parquet file": (raw("t.parquet", b""), "t.parquet cannot be read"),
    "html as arrow": (raw("t.arrow", b"<html>404</html>"), "t.arrow cannot be read"),
    "html as tar": (raw("t.tar", b"<html>404</html>"), "t.tar cannot be read"),
    "no rows": (raw("metadata.jsonl", b"\n"), "no rows"),
    "no rows in parquet": (parquet_of(image=pa.array([], pa.binary()), text=pa.array([], pa.string())), "no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)


def test_captions_stay_as_written_in_csv(tmp_path):
    write_images(tmp_path / "a")
    (tmp_path / "a/metadata.csv").write_text(
        'text,file_name\n007,b.png\nnull,a.png\n"two\nlines, ""quoted""",sub/c.png\n'
    )
    dataset = opened(tmp_path, name=tmp_path / "a")
    assert [dataset.captions(i)[0] for i in range(3)] == ["007", "null", 'two\nlines, "quoted"']


def test_truncated_tables_are_refused(tmp_path):
    for form in (parquet_file, webdataset_txt, arrow_file):
        path = form(tmp_path / form.__name__)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 57 // 100])
        with pytest.raises(DatasetError):
            opened(tmp_path, name=path)


def test_a_parquet_file_that_unpacks_without_end(tmp_path):
    pq.write_table(pa.table({"image": [bytes(1 << 16)] * 100, "text": ["x"] * 100}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 17
    with pytest.raises(DatasetError, match="unpacks to more"):
        opened(tmp_path, limits=Limits(max_dataset_bytes=1 << 20), name=tmp_path / "t.parquet")
    assert not list((tmp_path / "cache/tables").iterdir())


def test_a_full_cache_is_an_output_error(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        opened(tmp_path, name=parquet_file(tmp_path / "data"))


def test_many_rows_take_seconds(tmp_path):
    rows = 100_000
    pq.write_table(
        pa.table({"image": pa.array([b"x"] * rows, pa.binary()), "text": [["a caption", "another"]] * rows}),
        tmp_path / "t.parquet",
    )
    start = time.monotonic()
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert len(dataset) == rows
    assert time.monotonic() - start < 8


def test_reading_a_parquet_dataset_holds_none_of_it(tmp_path):
    noise = np.random.default_rng(0).bytes(1 << 20)
    images = [noise[i:] + hashlib.sha256(bytes([i])).digest() for i in range(100)]
    pq.write_table(pa.table({"image": images, "text": ["x"] * 100}), tmp_path / "t.parquet", row_group_size=10)
    del images
    before = pa.total_allocated_bytes()
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert len(dataset.image_bytes(99)) > 1 << 19
