"""Clips and captions in two text files, line by line."""

import pytest

from engine.core.errors import DatasetError
from tests.support.clip_sources import CAPTIONS, NAMES, line_by_line, lines_of, opened, put, with_clips


def captions(dataset):
    return [dataset.captions(index) for index in dataset.image_indices()]


WRONG = {
    "fewer captions": (
        {"videos.txt": lines_of(NAMES), "prompts.txt": lines_of(CAPTIONS[:2])},
        r"videos\.txt has 3 lines, prompts\.txt 2: line by line",
    ),
    "captions with blank lines between": (
        {"videos.txt": lines_of(NAMES), "prompts.txt": "\n\n".join(CAPTIONS)},
        r"videos\.txt has 3 lines, prompts\.txt 5.*without blank lines",
    ),
    "a blank path": ({"videos.txt": "b.mp4\n\nsub/c.MOV", "prompts.txt": "x\n\ny"}, r"line 2 of videos\.txt is blank"),
    "a blank caption": ({"videos.txt": lines_of(NAMES), "prompts.txt": "x\n \ny"}, r"line 2 of prompts\.txt is blank"),
    "no captions": ({"videos.txt": lines_of(NAMES)}, r"videos\.txt has no captions beside it: write prompts\.txt"),
    "two files of captions": (
        {"videos.txt": lines_of(NAMES), "prompts.txt": lines_of(CAPTIONS), "captions.txt": lines_of(CAPTIONS)},
        r"more than one file of captions beside it, prompts\.txt, captions\.txt: keep one",
    ),
    "two lists": (
        {"videos.txt": lines_of(NAMES), "video.txt": lines_of(NAMES), "prompts.txt": lines_of(CAPTIONS)},
        r"more than one of videos\.txt, video\.txt: keep one",
    ),
    "Latin-1": ({"videos.txt": lines_of(NAMES), "prompts.txt": "é\n".encode("latin-1")}, r"prompts\.txt is not UTF-8"),
    "no such files": (
        {"videos.txt": "clips/b.mp4\nclips/a.webm", "prompts.txt": "x\ny"},
        r"none of the 2 files.*videos\.txt is a path from data/ on.*write a\.webm, not clips/a\.webm",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_file_and_line(case, tmp_path):
    files, message = WRONG[case]
    with pytest.raises(DatasetError, match=message) as caught:
        opened(tmp_path, name=with_clips(tmp_path / "data", files))
    assert "\n" not in str(caught.value)


def test_a_caption_of_the_task_stands_for_a_missing_one(tmp_path):
    lists = {"videos.txt": lines_of(NAMES)}
    dataset = opened(tmp_path, name=with_clips(tmp_path / "a", lists), default_caption="a film")
    assert captions(dataset) == [("a film",)] * 3
    lists["prompts.txt"] = "one\n\nthree\n"
    dataset = opened(tmp_path, name=with_clips(tmp_path / "b", lists), default_caption="a film")
    assert captions(dataset) == [("one",), ("a film",), ("three",)]
    assert dataset.caption_rules == {"prompts.txt": 2, "none of their own": 1}


def test_a_text_beside_a_clip_of_that_name_is_its_caption(tmp_path):
    folder = put(tmp_path / "data", {"videos.mp4": b"x", "videos.txt": "a caption", "prompts.txt": "lost"})
    assert captions(opened(tmp_path, name=folder)) == [("a caption",)]


def test_lists_of_other_splits_are_not_trained_on(tmp_path):
    lines = []
    line_by_line(tmp_path / "data/train")
    line_by_line(tmp_path / "data/test")
    dataset = opened(tmp_path, name=tmp_path / "data", report=lines.append)
    assert [dataset.name(index) for index in range(3)] == NAMES
    assert lines[0] == "dataset: the training split is train/videos.txt"
    assert any(line.startswith("dataset: 3 clips belong to other splits") for line in lines)


@pytest.mark.parametrize("line", ["../secret.png", "/etc/passwd", "http://example.org/a.mp4", "file:///etc/passwd"])
def test_a_list_of_a_download_names_files_of_its_own_alone(line, tmp_path, fetched):
    with_clips(fetched, {"videos.txt": lines_of([*NAMES, line]), "prompts.txt": lines_of([*CAPTIONS, "x"])})
    with pytest.raises(DatasetError, match=r"row 3 of videos\.txt names"):
        opened(tmp_path, url="https://example.org/clips")


def test_lists_count_for_clips_alone(tmp_path):
    from engine.data.dataset.open import open_dataset
    from engine.data.media.image import IMAGE
    from engine.task.task import Dataset
    from tests.support.datasets import PICTURES

    folder = put(tmp_path / "data", {"a.png": PICTURES[0], "videos.txt": "a.png", "prompts.txt": "x"})
    wanted = Dataset(name=str(folder), default_caption="a picture")
    images = open_dataset(wanted, IMAGE, cache_dir=tmp_path / "cache", revision=None, report=lambda line: None)
    assert captions(images) == [("a picture",)]
