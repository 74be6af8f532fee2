"""Notes on captions, in every Arrow type that a table may have them in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.caption_folders import opened
from tests.support.datasets import picture

WEIGHTS = "weights such as (red:1.2), which are trained as text; leave them out"
TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
    *(pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2), pa.list_(pa.string_view())),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_every_type(type_, tmp_path):
    captions = ["a (red:1.2) dog", "plain", "a (blue:0.7) dog", "a", "(a:1.0)", "(b:1.1)"]
    is_list = not (pa.types.is_dictionary(type_) or pa.types.is_string(type_) or type_ in TYPES[:3])
    values = [[caption, f"{caption} again"] for caption in captions] if is_list else captions
    table = pa.table({"image": [picture(i) for i in range(6)], "text": pa.array(values).cast(type_)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    said = []
    opened(tmp_path / "t.parquet", tmp_path, said=said)
    names = ", ".join(f"row {row} of t.parquet" for row in (0, 2, 4))
    marked = f"dataset: 4 images have captions with {WEIGHTS}: {names} and 1 more"
    several = (
        "dataset: 6 images have several captions (up to 2), of which each visit draws one; "
        "row 0 of t.parquet: 'a (red:1.2) dog', 'a (red:1.2) dog again'"
    )
    assert said == ([several] if is_list else []) + [marked]


def test_images_of_several_parts_are_counted_together(tmp_path):
    for name, texts in (
        ("train-0.parquet", [["a"], ["b", "c"]]),
        ("train-1.parquet", [["d", "e", "f", "g"], ["h", "i"]]),
    ):
        (tmp_path / "d").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [picture(0), picture(1)], "text": texts}), tmp_path / "d" / name)
    said = []
    opened(tmp_path / "d", tmp_path, said=said)
    assert said == [
        "dataset: 3 images have several captions (up to 4), of which each visit draws one; row 1 of train-0.parquet: "
        "'b', 'c'"
    ]
