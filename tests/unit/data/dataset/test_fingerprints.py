"""Fingerprints follow the content alone, and are computed once for each."""

import json
import os
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.data.dataset.fingerprints import fingerprint
from tests.support.datasets import (
    EXPECTED,
    FORMS,
    PICTURES,
    TICK,
    content,
    embedded_table,
    metadata_jsonl,
    opened,
    parquet_file,
    write_jsonl,
)


def test_fingerprint_follows_content_not_place_or_time(tmp_path):
    folder = metadata_jsonl(tmp_path / "one")
    first = opened(tmp_path, name=folder).fingerprint
    moved = shutil.copytree(folder, tmp_path / "two")
    os.utime(moved / "a.png", (1, 1))
    assert opened(tmp_path, name=moved).fingerprint == first
    assert len(first) == 64


def test_fingerprint_changes_with_a_byte_a_caption_or_the_order(tmp_path):
    seen = {opened(tmp_path, name=metadata_jsonl(tmp_path / "0")).fingerprint}

    def variant(change):
        folder = metadata_jsonl(tmp_path / str(len(seen)))
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        change(folder, rows)
        write_jsonl(folder / "metadata.jsonl", rows)
        seen.add(opened(tmp_path, name=folder).fingerprint)

    def flip_a_bit(folder, rows):
        data = bytearray((folder / "a.png").read_bytes())
        data[-1] ^= 1
        (folder / "a.png").write_bytes(data)

    changes = [
        flip_a_bit,
        lambda folder, rows: (folder / "a.png").unlink(),
        lambda folder, rows: rows.reverse(),
        lambda folder, rows: rows.pop(),
        lambda folder, rows: rows[0].update(text="a red squarE"),
        lambda folder, rows: rows[0].update(text=["a red", "square"]),
        lambda folder, rows: rows[0].update(text=["a redsquare"]),
        lambda folder, rows: rows[0].update(text=["a red square", ""]),
    ]
    for change in changes:
        variant(change)
    assert len(seen) == 1 + len(changes)


def test_fingerprint_of_a_download_is_remembered_until_it_is_fetched_anew(fetched, tmp_path, computed):
    metadata_jsonl(fetched)
    time.sleep(TICK)
    first = opened(tmp_path, url="https://example.org/x").fingerprint
    assert opened(tmp_path, url="https://example.org/x").fingerprint == first
    assert len(computed) == 1
    shutil.rmtree(fetched)
    metadata_jsonl(fetched)
    (fetched / "a.png").write_bytes(PICTURES[2])
    assert opened(tmp_path, url="https://example.org/x").fingerprint != first
    assert len(computed) == 2


def change_in_place(folder):
    """Another first picture wherever its bytes stand, under the times of before."""
    for path in sorted(folder.rglob("*.*")):
        data, before = path.read_bytes(), path.stat()
        if PICTURES[0] in data:
            path.write_bytes(data.replace(PICTURES[0], PICTURES[0][:-1] + b"!"))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_fingerprint_is_computed_once_for_each_content(form, tmp_path, computed):
    path = form(tmp_path / "data")
    time.sleep(TICK)
    first = opened(tmp_path, name=path)
    again = opened(tmp_path, name=path)
    assert len(computed) == 1
    assert again.fingerprint == first.fingerprint == fingerprint(first.parts)
    assert content(again) == EXPECTED
    change_in_place(tmp_path / "data")
    changed = opened(tmp_path, name=path)
    assert changed.fingerprint == fingerprint(changed.parts)
    is_other = content(changed) != EXPECTED
    assert is_other or "parquet" in form.__name__  # whose pages are compressed: only its statistics have the bytes
    assert (changed.fingerprint != first.fingerprint) == is_other


def test_columns_of_one_table_have_their_own_fingerprints(tmp_path, computed):
    folder = tmp_path / "data"
    folder.mkdir()
    table = embedded_table()
    table = table.append_column("other", table.column("image").take(pa.array([2, 1, 0])))
    pq.write_table(table, folder / "a.parquet")
    time.sleep(TICK)
    found = [opened(tmp_path, name=folder, image_column=name) for name in ("image", "other", "image")]
    assert len(computed) == 2
    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint
    assert found[1].fingerprint == fingerprint(found[1].parts)


def test_a_missing_image_that_comes_back_is_seen(tmp_path, computed):
    folder = metadata_jsonl(tmp_path / "data")
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    time.sleep(TICK)
    without = opened(tmp_path, name=folder).fingerprint
    assert opened(tmp_path, name=folder).fingerprint == without
    (folder / "a.png").write_bytes(data)
    assert opened(tmp_path, name=folder).fingerprint != without
    assert len(computed) == 2


def test_another_table_at_the_same_path_and_time_is_another_dataset(tmp_path):
    path = parquet_file(tmp_path / "data")
    first = opened(tmp_path, name=path)
    os.utime(path, (1, 1))
    pq.write_table(embedded_table(PICTURES[::-1]), path, row_group_size=2)
    os.utime(path, (1, 1))
    second = opened(tmp_path, name=path)
    assert second.image_bytes(0) == PICTURES[2]
    assert first.image_bytes(0) == PICTURES[0]
    assert first.fingerprint != second.fingerprint
