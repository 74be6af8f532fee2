"""Rows: captions as tables have them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.datasets import embedded_table, hidden_png, jsonl_of, opened, parquet_of, raw, require_refused

GOOD = {"file_name": "a.png", "text": "x"}


BAD = {
    "numbers as captions in json": (jsonl_of(GOOD, {"file_name": "a.png", "text": 5}), "row 1 .*holds 5"),
    "mixed list": (jsonl_of({"file_name": "a.png", "text": ["x", None]}), r"row 0 .*\['x', None\]"),
    "null caption": (jsonl_of(GOOD, {"file_name": "a.png", "text": None}), "no caption.*1 row .*row 1"),
    "no caption key": (jsonl_of(GOOD, GOOD, {"file_name": "a.png"}), "no caption.*row 2"),
    "empty caption list": (jsonl_of({"file_name": "a.png", "text": []}), "no caption.*row 0"),
    "null in parquet": (parquet_of(image=hidden_png() * 3, text=["x", None, None]), "2 rows.*row 1"),
    "all null in parquet": (parquet_of(image=hidden_png(), text=pa.nulls(1)), "no caption"),
    "null in a parquet list": (parquet_of(image=hidden_png() * 2, text=[["x"], ["y", None]]), "row 1"),
    "empty parquet list": (parquet_of(image=hidden_png() * 2, text=[["x"], []]), "row 1"),
    "image is no path": (jsonl_of({"file_name": ["a.png"], "text": "x"}), "row 0.*expected a path"),
    "lone surrogate": (raw("metadata.jsonl", b'{"file_name": "a.png", "text": "\\ud800"}'), "Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_caption_lists_in_arrow_types(tmp_path, type_):
    captions = pa.array([["a", "b"], ["c", ""], ["d", "e"]], type_)
    pq.write_table(embedded_table().set_column(2, "text", captions), tmp_path / "t.parquet")
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert [dataset.captions(i) for i in range(3)] == [("a", "b"), ("c", ""), ("d", "e")]
