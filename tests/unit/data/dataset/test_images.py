"""Where encoded images are: their names and their bytes."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.datasets import PICTURES, content, metadata_jsonl, opened, parquet_of_binaries, webdataset_txt


def test_names_are_for_messages(tmp_path):
    assert opened(tmp_path, name=metadata_jsonl(tmp_path / "a")).name(2) == "sub/c.png"
    assert opened(tmp_path, name=parquet_of_binaries(tmp_path / "b")).name(2) == "row 2 of table.parquet"
    assert opened(tmp_path, name=webdataset_txt(tmp_path / "c")).name(2) == "shard-000.tar/s/002.png"


def test_bytes_win_over_a_path_that_is_only_a_name(fetched, tmp_path):
    fetched.mkdir()
    cells = [{"bytes": PICTURES[1], "path": "/etc/passwd"}]
    pq.write_table(pa.table({"image": cells, "text": ["x"]}), fetched / "t.parquet")
    assert content(opened(tmp_path, url="https://example.org/x")) == [(PICTURES[1], ("x",))]
