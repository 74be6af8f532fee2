"""Folders: which files of one are the dataset's."""

import os
import shutil

import pytest

from engine.core.errors import DatasetError
from engine.data.media.geometry import UnreadableImage
from tests.support.datasets import (
    EXPECTED,
    PICTURES,
    content,
    metadata_csv,
    metadata_jsonl,
    opened,
    parquet_folder,
    raw,
    require_refused,
    write_images,
    write_jsonl,
)

BAD = {
    "two metadata files": (lambda f: metadata_csv(metadata_jsonl(f)), "more than one of"),
    "images alone": (lambda f: write_images(f) and f, "3 images but no captions"),
    "nothing": (lambda f: f.mkdir() or f, "nothing to train on"),
    "saved files elsewhere": (raw("state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}'), "state.json"),
    "splits elsewhere": (raw("dataset_dict.json", b'{"splits": ["../x"]}'), "dataset_dict.json"),
    "an archive": (lambda f: write_images(f) and (f / "x.zip").write_bytes(b"PK") and f / "x.zip", "unpack an archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)


def test_metadata_reports_images_that_are_dropped_or_missing(tmp_path):
    folder = metadata_jsonl(tmp_path / "data")
    (folder / "extra.png").write_bytes(PICTURES[0])
    (folder / "a.png").unlink()
    lines = []
    dataset = opened(tmp_path, name=folder, report=lines.append)
    assert len(dataset) == 3
    assert any("1 image is not used" in line and "extra.png" in line for line in lines)
    assert any("1 image listed in the metadata, file not found: a.png" in line for line in lines)
    with pytest.raises(UnreadableImage, match="No such file"):
        dataset.image_bytes(1)


def test_row_order_does_not_depend_on_listing(tmp_path, monkeypatch):
    folder = parquet_folder(tmp_path / "data")
    before = opened(tmp_path, name=folder).fingerprint
    walk = os.walk

    def backwards(*args, **kwargs):
        for root, folders, files in walk(*args, **kwargs):
            folders.sort(reverse=True)
            yield root, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert opened(tmp_path, name=folder).fingerprint == before


def test_splits_in_folders(tmp_path):
    for split, index in (("train", 0), ("validation", 1), ("test", 2)):
        write_jsonl(tmp_path / f"d/{split}/metadata.jsonl", [{"file_name": "x.png", "text": split}])
        (tmp_path / f"d/{split}/x.png").write_bytes(PICTURES[index])
    assert content(opened(tmp_path, name=tmp_path / "d")) == [(PICTURES[0], ("train",))]
    shutil.rmtree(tmp_path / "d/train")
    with pytest.raises(DatasetError, match="test, validation"):
        opened(tmp_path, name=tmp_path / "d")
    shutil.rmtree(tmp_path / "d/test")
    assert opened(tmp_path, name=tmp_path / "d").captions(0) == ("validation",)


def test_metadata_at_the_top_beside_another_split_is_the_training_one(tmp_path):
    for folder, index in (("", 0), ("validation/", 1)):
        write_jsonl(tmp_path / f"d/{folder}metadata.jsonl", [{"file_name": "x.png", "text": folder or "top"}])
        (tmp_path / f"d/{folder}x.png").write_bytes(PICTURES[index])
    lines = []
    dataset = opened(tmp_path, name=tmp_path / "d", report=lines.append)
    assert content(dataset) == [(PICTURES[0], ("top",))]
    assert lines == [
        "dataset: the training split is metadata.jsonl",
        "dataset: 1 data file belongs to another split and is not trained on: validation/metadata.jsonl",
        "dataset: 1 image belongs to another split and is not trained on: validation/x.png",
    ]


def test_saved_splits_without_train_are_listed(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"image": [], "text": []})
    datasets.DatasetDict({"a": part, "b": part}).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetError, match="a, b"):
        opened(tmp_path, name=tmp_path / "d")


def test_a_local_configuration_is_a_folder(tmp_path):
    metadata_jsonl(tmp_path / "d/small")
    assert content(opened(tmp_path, name=tmp_path / "d", config_name="small")) == EXPECTED
    for other in ("large", "..", "../d", "small/sub"):
        with pytest.raises(DatasetError, match="config_name"):
            opened(tmp_path, name=tmp_path / "d", config_name=other)


def test_odd_file_names_make_one_line(tmp_path):
    folder = metadata_jsonl(tmp_path / "d")
    (folder / os.fsdecode(b"new\nline \xe9.png")).write_bytes(PICTURES[0])
    lines = []
    opened(tmp_path, name=folder, report=lines.append)
    assert len(lines) == 1
    assert lines[0].isprintable()
