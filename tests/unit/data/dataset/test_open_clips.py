"""Opening a dataset of clips: every form gives the same rows; what is missing is said in the words of its files."""

import zipfile

import pytest

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.fetch.archive import extract
from tests.support.clip_sources import (
    CAPTIONS,
    CLIPS,
    EXPECTED,
    FORMS,
    line_by_line,
    opened,
    put,
    side_cars,
    tar_with_thumbnails,
    with_clips,
)
from tests.support.datasets import COMMIT, content


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_rows_and_fingerprint(form, tmp_path):
    dataset = opened(tmp_path, name=form(tmp_path / "data"))
    assert content(dataset) == EXPECTED
    assert dataset.fingerprint == opened(tmp_path, name=side_cars(tmp_path / "reference")).fingerprint


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_comes_in_an_archive_from_an_address(form, tmp_path, fetched):
    source = form(tmp_path / "source")
    root = source if source.is_dir() else source.parent
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, f"top/{path.relative_to(root)}")
    fetched.mkdir()
    extract(packed, fetched, Limits())
    assert content(opened(tmp_path, url="https://example.org/clips")) == EXPECTED


def test_a_tar_of_samples_from_an_address_is_read_in_place(tmp_path, fetched):
    fetched.mkdir()
    extract(tar_with_thumbnails(tmp_path / "source"), fetched, Limits())
    assert [path.suffix for path in fetched.iterdir()] == [".tar"]
    assert content(opened(tmp_path, url="https://example.org/clips")) == EXPECTED


def test_a_hub_dataset_with_a_feature_of_videos(tmp_path, fake_hub):
    import datasets

    features = datasets.Features({"video": datasets.Video(decode=False), "text": datasets.Value("string")})
    rows = {"video": [{"bytes": clip, "path": None} for clip in CLIPS], "text": CAPTIONS}
    fake_hub.splits = {"train": datasets.Dataset.from_dict(rows, features=features)}
    dataset = opened(tmp_path, name="someone/clips")
    assert content(dataset) == EXPECTED
    assert dataset.revision == COMMIT
    with pytest.raises(DatasetError, match=r"no column 'film' \(dataset\.video_column\).*video \(clips\), text"):
        opened(tmp_path, name="someone/clips", video_column="film")
    with pytest.raises(DatasetError, match=r"'text' of someone/clips \(dataset\.video_column\) holds text, not clips"):
        opened(tmp_path, name="someone/clips", video_column="text")


def test_images_stand_beside_clips(tmp_path):
    folder = side_cars(tmp_path / "data")
    put(folder, {"3.png": b"an image", "3.txt": "a still", "0.jpg": b"a still of the first clip"})
    found = content(opened(tmp_path, name=folder))
    assert (b"an image", ("a still",)) in found
    assert (b"a still of the first clip", (CAPTIONS[0],)) in found
    assert len(found) == 5


def test_files_that_are_not_used_are_told_in_the_words_of_clips(tmp_path):
    lines = []
    folder = put(side_cars(tmp_path / "data"), {"lost.txt": "x", "old.wmv": b"x"})
    opened(tmp_path, name=folder, report=lines.append)
    assert lines == [
        "dataset: 1 video is not read, save as .mp4, .mkv or .webm: old.wmv",
        "dataset: 1 text file has no clip of that name beside it: lost.txt",
    ]


def test_clips_without_captions_are_refused_with_the_ways_to_write_them(tmp_path):
    with pytest.raises(DatasetError, match=r"3 clips but no captions.*\(cat\.mp4, cat\.txt\).*videos\.txt and prompts"):
        opened(tmp_path, name=with_clips(tmp_path / "data"))


def test_a_listed_clip_that_does_not_exist_is_told(tmp_path):
    folder, lines = line_by_line(tmp_path / "data"), []
    (folder / "a.webm").unlink()
    assert len(opened(tmp_path, name=folder, report=lines.append)) == 3
    assert lines == ["dataset: 1 clip listed in the metadata, file not found: a.webm"]
