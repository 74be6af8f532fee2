"""Where encoded images are: their names and their bytes."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.datasets import (
    PICTURES,
    content,
    metadata_jsonl,
    opened,
    parquet_of_binaries,
    parquet_of_paths,
    webdataset_txt,
)


def test_names_are_for_messages(tmp_path):
    assert opened(tmp_path, name=metadata_jsonl(tmp_path / "a")).name(2) == "sub/c.png"
    assert opened(tmp_path, name=parquet_of_binaries(tmp_path / "b")).name(2) == "row 2 of table.parquet"
    assert opened(tmp_path, name=webdataset_txt(tmp_path / "c")).name(2) == "shard-000.tar/s/002.png"


def test_bytes_win_over_a_path_that_is_only_a_name(fetched, tmp_path):
    fetched.mkdir()
    cells = [{"bytes": PICTURES[1], "path": "/etc/passwd"}]
    pq.write_table(pa.table({"image": cells, "text": ["x"]}), fetched / "t.parquet")
    assert content(opened(tmp_path, url="https://example.org/x")) == [(PICTURES[1], ("x",))]


@pytest.mark.parametrize("build", [metadata_jsonl, parquet_of_binaries, parquet_of_paths, webdataset_txt])
def test_a_digest_is_that_of_what_is_read(build, tmp_path):
    dataset = opened(tmp_path, name=build(tmp_path / "data"))
    for images in (dataset.parts[0].images, dataset.picked([2, 0]).parts[0].images, dataset.parts[0].images.images):
        digests = [images.digest(row) for row in range(len(images))]
        assert digests == [hashlib.sha256(images.read(row)).digest() for row in range(len(images))]
