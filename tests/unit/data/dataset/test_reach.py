"""What rows may name, and files that cannot be read."""

import hashlib
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.reach import hash_regular, read_regular
from engine.data.media.geometry import UnreadableImage
from tests.support.datasets import content, metadata_jsonl, opened, write_images, write_jsonl


def test_unreadable_files_cost_only_their_row(tmp_path):
    folder = metadata_jsonl(tmp_path / "data")
    (folder / "b.png").write_bytes(b"")
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    (folder / "sub/c.png").unlink()
    (folder / "sub/c.png").mkdir()
    dataset = opened(tmp_path, name=folder)
    for index in range(3):
        with pytest.raises(UnreadableImage):
            dataset.image_bytes(index)


REACHING_OUT = {
    "absolute": "{secret}",
    "up": "../secret.png",
    "up and back": "sub/../a.png",
    "file url": "file://{secret}",
    "file colon": "file:{secret}",
    "http": "http://127.0.0.1/x.png",
    "https, odd case": "HtTpS://example.org/x.png",
    "zip chain": "zip://x.png::{secret}",
    "chain": "simplecache::{secret}",
    "data": "data:image/png;base64,AAAA",
    "symlink": "link.png",
    "symlinked folder": "linked/secret.png",
}


@pytest.mark.parametrize("table", ["jsonl", "parquet", "struct"])
@pytest.mark.parametrize("case", REACHING_OUT)
def test_downloaded_rows_name_only_their_own_files(case, table, fetched, tmp_path):
    value = REACHING_OUT[case].format(secret=tmp_path / "secret.png")
    write_images(fetched)
    (fetched / "link.png").symlink_to(tmp_path / "secret.png")
    (fetched / "linked").symlink_to(tmp_path)
    values = ["a.png", value]
    if table == "jsonl":
        write_jsonl(fetched / "metadata.jsonl", [{"file_name": v, "text": "x"} for v in values])
    elif table == "parquet":
        pq.write_table(pa.table({"image": values, "text": ["x", "x"]}), fetched / "t.parquet")
    else:
        cells = [{"bytes": None, "path": v} for v in values]
        pq.write_table(pa.table({"image": cells, "text": ["x", "x"]}), fetched / "t.parquet")
    with pytest.raises(DatasetError, match="row 1 of") as caught:
        opened(tmp_path, url="https://example.org/x")
    assert value[:20] in str(caught.value)


def test_a_downloaded_table_may_not_be_a_link(fetched, tmp_path):
    metadata_jsonl(tmp_path / "other")
    fetched.mkdir()
    (fetched / "metadata.jsonl").symlink_to(tmp_path / "other/metadata.jsonl")
    with pytest.raises(DatasetError, match="leads out"):
        opened(tmp_path, url="https://example.org/x")


@pytest.mark.parametrize("value", ["http://127.0.0.1/x.png", "zip://a::b", "file:///x.png"])
def test_local_rows_name_no_urls_either(value, tmp_path):
    write_jsonl(tmp_path / "d/metadata.jsonl", [{"file_name": value, "text": "x"}])
    with pytest.raises(DatasetError, match="not downloaded one by one"):
        opened(tmp_path, name=tmp_path / "d")


def test_colons_and_dots_in_file_names_are_harmless(fetched, tmp_path):
    names = write_images(fetched, ("12:30.png", "a..b.png", "..png"))
    write_jsonl(fetched / "metadata.jsonl", [{"file_name": n, "text": "x"} for n in names])
    assert len(content(opened(tmp_path, url="https://example.org/x"))) == 3


class TestHash:
    """The digest of a file, which is read in pieces."""

    def test_is_that_of_the_whole_file_which_is_never_in_memory(self, tmp_path):
        file, size = tmp_path / "clip.mp4", 64 << 20
        with file.open("wb") as opened:
            opened.write(b"x")
            opened.truncate(size)
        tracemalloc.start()
        try:
            found = hash_regular(str(file), size)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found == hashlib.sha256(file.read_bytes()).digest() and peak < size // 8

    def test_refuses_what_reading_refuses(self, tmp_path):
        (tmp_path / "large").write_bytes(bytes(9))
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", tmp_path / "large", "/proc/self/status"):
            with pytest.raises(UnreadableImage):
                hash_regular(str(path), 8)
            with pytest.raises(UnreadableImage):
                read_regular(str(path), 8)
