"""Columns: which of a table's are meant, and what is said where they are not there."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.datasets import (
    CAPTIONS,
    PICTURES,
    hidden_png,
    jsonl_of,
    opened,
    parquet_of,
    require_refused,
    write_images,
    write_jsonl,
)

TWO_COLUMNS = pa.Table.from_arrays(
    [pa.array(PICTURES), pa.array(CAPTIONS), pa.array(CAPTIONS)], ["image", "text", "text"]
)


IMAGES_TEXT_N = r"'image'.*picture \(images\), text \(text\), n \(numbers\)"


BAD = {
    "no image column": (jsonl_of({"picture": "a.png", "text": "x", "n": 1}), IMAGES_TEXT_N),
    "no caption column": (jsonl_of({"file_name": "a.png", "caption": "x"}), r"caption_column.*caption \(text\)"),
    "no parquet column": (parquet_of(image=hidden_png(), label=[1]), r"'text'.*image \(images\), label \(int64\)"),
    "videos": (parquet_of(video=hidden_png(), text=["x"]), r"'image'.*video \(videos, which only video models"),
    "numbers as images": (parquet_of(image=[1], text=["x"]), "'image'.*holds int64, not images"),
    "numbers as captions": (parquet_of(image=hidden_png(), text=[1]), "'text'.*holds int64"),
    "doubled column": (lambda f: f.mkdir() or pq.write_table(TWO_COLUMNS, f / "t.parquet") or f, "several columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)


def test_other_columns(tmp_path):
    names = write_images(tmp_path / "a")
    rows = [{"photo_file_name": name, "caption": [name, "x"] if name == "a.png" else name} for name in names]
    write_jsonl(tmp_path / "a/metadata.jsonl", rows)
    dataset = opened(tmp_path, name=tmp_path / "a", image_column="photo", caption_column="caption")
    assert [dataset.captions(i) for i in range(3)] == [("b.png",), ("a.png", "x"), ("sub/c.png",)]
