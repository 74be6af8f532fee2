"""The index of a tar is made once for each content and settings, and says of its images what reading them would."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.core.errors import DatasetError
from engine.core.files.atomic_files import seal, unseal
from engine.data.dataset import images
from engine.data.dataset.columns import Columns
from engine.data.dataset.fingerprints import fingerprint
from engine.data.dataset.tables import tar_index, webdataset
from engine.data.dataset.tables.tar_index import read_tar, save_index
from engine.data.dataset.tables.webdataset import make_index
from engine.data.media.geometry import UnreadableImage
from engine.data.media.image import IMAGE
from tests.support.datasets import (
    CAPTIONS,
    EXPECTED,
    PICTURES,
    TICK,
    content,
    metadata_jsonl,
    opened,
    webdataset_txt,
    write_jsonl,
    write_tar,
)

COLUMNS = Columns("image", "text", IMAGE)


@pytest.fixture
def made(monkeypatch, computed):
    """The labels of the tars that were read; files count as settled after a tick of the kernel's clock."""
    found = []
    monkeypatch.setattr(
        tar_index,
        "make_index",
        lambda path, columns, label, **o: found.append(label) or make_index(path, columns, label, **o),
    )
    return found


def pairs(count):
    return [
        (f"{i:04}.{suffix}", data) for i in range(count) for suffix, data in (("png", PICTURES[i % 3]), ("txt", b"x"))
    ]


def settled(path):
    time.sleep(TICK)
    return path


def kept(tmp_path):
    return sorted((tmp_path / "cache/tables").glob("*.arrow"))


def test_an_index_is_made_once(tmp_path, made, monkeypatch):
    path = settled(webdataset_txt(tmp_path / "data"))
    first = opened(tmp_path, name=path)
    monkeypatch.setattr(tar_index.LocalTar, "read", None)
    again = opened(tmp_path, name=path)
    assert made == ["shard-000.tar"]
    assert again.fingerprint == first.fingerprint == fingerprint(again.parts)
    assert [again.captions(i)[0] for i in range(3)] == CAPTIONS


def test_the_fingerprint_is_that_of_the_same_content_in_files(tmp_path):
    folder = metadata_jsonl(tmp_path / "files")
    write_jsonl(
        folder / "metadata.jsonl",
        [{"file_name": n, "text": t} for n, t in zip(("b.png", "a.png", "sub/c.png"), CAPTIONS, strict=True)],
    )
    in_files = opened(tmp_path, name=folder)
    in_tar = opened(tmp_path, name=webdataset_txt(tmp_path / "data"))
    assert content(in_tar) == content(in_files) == EXPECTED
    assert in_tar.fingerprint == in_files.fingerprint


def test_a_large_index_is_mapped_and_keeps_no_file_open(tmp_path, made):
    path = settled(write_tar(tmp_path / "t.tar", pairs(1000)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    parts = [read_tar(path, COLUMNS, "t.tar", cache_dir=tmp_path / "cache") for _ in range(3)]
    [file] = kept(tmp_path)
    assert file.name in Path("/proc/self/maps").read_text()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the cache's locks
    assert bytes(parts[0].images.known_digests()) == b"".join(
        hashlib.sha256(parts[1].images.read(row)).digest() for row in range(1000)
    )
    assert made == ["t.tar"]


@pytest.mark.parametrize("size", [0, 31, 300, -1])
def test_a_damaged_index_is_made_again(size, tmp_path, made):
    path = settled(webdataset_txt(tmp_path / "data"))
    opened(tmp_path, name=path)
    [file] = kept(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:size] if size >= 0 else data[:-40] + bytes(40))
    assert content(opened(tmp_path, name=path)) == EXPECTED
    assert made == ["shard-000.tar"] * 2
    assert file.read_bytes() == data


def other_batch(data):
    """An index of which a caption begins behind the end of its buffer."""
    batch = pa.ipc.open_stream(unseal(data)).read_next_batch()
    captions = batch.column("caption").buffers()
    offsets = np.frombuffer(captions[1], np.int32).copy()
    offsets[1] = 10_000
    column = pa.Array.from_buffers(pa.string(), batch.num_rows, [None, pa.py_buffer(offsets), captions[2]])
    names = batch.schema.names
    return pa.record_batch([column if name == "caption" else batch.column(name) for name in names], names=names)


STRANGE = {
    "no Arrow": lambda data: b"x" * 300,
    "no rows": lambda data: b"",
    "another table": lambda data: pa.record_batch({"size": [1, 2, 3]}),
    "wrong offsets": other_batch,
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_sealed_file_that_is_no_index_is_replaced(case, tmp_path, made):
    path = settled(webdataset_txt(tmp_path / "data"))
    opened(tmp_path, name=path)
    [file] = kept(tmp_path)
    data, strange = file.read_bytes(), STRANGE[case](file.read_bytes())
    if isinstance(strange, bytes):
        file.write_bytes(seal(strange))
    else:
        assert save_index(strange, file)
    assert content(opened(tmp_path, name=path)) == EXPECTED
    assert (len(made), file.read_bytes() == data) == (2, True)


def test_a_changed_tar_and_other_settings_have_an_index_of_their_own(tmp_path, made):
    path = settled(webdataset_txt(tmp_path / "data"))
    first = opened(tmp_path, name=path)
    other = opened(tmp_path, name=path, default_caption="none")
    assert (other.fingerprint, len(kept(tmp_path))) == (first.fingerprint, 2)
    write_tar(path, [("1.png", PICTURES[2]), ("1.txt", b"new")])
    assert content(opened(tmp_path, name=settled(path))) == [(PICTURES[2], ("new",))]
    assert len(made) == 3


def test_without_a_cache_that_can_be_written_the_index_stays_in_memory(tmp_path, made):
    path = settled(webdataset_txt(tmp_path / "data"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/tables").write_bytes(b"in the way")
    assert content(opened(tmp_path, name=path)) == content(opened(tmp_path, name=path)) == EXPECTED


def test_captions_that_are_missing_are_told_apart_in_an_index(tmp_path, made):
    members = [("1.png", PICTURES[0]), ("2.png", PICTURES[1]), ("2.txt", b"own")]
    path = settled(write_tar(tmp_path / "t.tar", members))
    rules = [opened(tmp_path, name=path, default_caption="any").caption_rules for _ in range(2)]
    assert rules[0] == rules[1] == {"t.tar": 1, "none of their own": 1}
    assert made == ["t.tar"]


def test_what_is_too_large_for_an_image_is_unreadable(tmp_path, made, monkeypatch):
    for module in (images, webdataset, tar_index):
        monkeypatch.setattr(module, "MAX_IMAGE_FILE_BYTES", len(PICTURES[0]), raising=False)
    monkeypatch.setattr("engine.data.dataset.tables.tar_members.MAX_IMAGE_FILE_BYTES", len(PICTURES[0]))
    big = PICTURES[1] + bytes(100)
    path = settled(
        write_tar(tmp_path / "t.tar", [("1.png", PICTURES[0]), ("1.txt", b"a"), ("2.png", big), ("2.txt", b"b")])
    )
    folder = tmp_path / "files"
    for name, data in (("1.png", PICTURES[0]), ("1.txt", b"a"), ("2.png", big), ("2.txt", b"b")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    dataset = opened(tmp_path, name=path)
    assert dataset.fingerprint == opened(tmp_path, name=folder).fingerprint
    with pytest.raises(UnreadableImage, match="more than the limit"):
        dataset.image_bytes(1)


def test_a_tar_that_changes_during_a_job_ends_it(tmp_path, made):
    path = settled(webdataset_txt(tmp_path / "data"))
    dataset = opened(tmp_path, name=path)
    path.write_bytes(path.read_bytes().replace(PICTURES[1], PICTURES[1][:-1] + b"!"))
    assert dataset.image_bytes(0) == PICTURES[0]
    with pytest.raises(DatasetError, match="has changed since the job began"):
        dataset.image_bytes(1)
    path.unlink()
    with pytest.raises(DatasetError, match="has changed since the job began"):
        dataset.image_bytes(0)
