"""Captions in JSON: a file beside each image, or one file by path."""

import json

import pytest

from engine.core.errors import DatasetError
from tests.support.caption_folders import images, opened, rows, write


class TestJsonBesideImages:
    def test_captions(self, folder, tmp_path):
        files = images("a.png", "b.png", "c.png", "d.png") | {
            "a.json": '{"caption": "a thing", "width": 64}',
            "b.JSON": '\n{"text": ["one", "two"],\n"caption": "three"}\n',
            "c.json": '{"caption": "overruled"}',
            "c.txt": "beside",
            "d.json": '{"prompt": "a column of the task"}',
        }
        said = []
        dataset = opened(write(folder, files), tmp_path, said=said, caption_column="prompt")
        assert rows(dataset) == [
            ("a.png", ("a thing",)),
            ("b.png", ("three",)),
            ("c.png", ("beside",)),
            ("d.png", ("a column of the task",)),
        ]
        assert dataset.caption_rules == {"a .json file beside the image": 3, "a .txt file beside the image": 1}
        assert (
            "dataset: 1 file beside an image is not read, the image's caption is taken from another file: c.json"
            in said
        )
        (folder / "d.json").unlink()
        (folder / "d.txt").write_text("d")
        assert rows(opened(folder, tmp_path))[1] == ("b.png", ("one", "two"))

    @pytest.mark.parametrize(
        "text",
        ['{"id": 0, "tags": ["a"], "image": "https://x.org/0.png"}', "[1]", "no JSON", '{"caption": 3}', "[" * 100_000],
    )
    def test_what_is_plainly_none_is_named(self, text, folder, tmp_path):
        write(folder, images("a.png", "b.png") | {"a.json": text, "b.txt": "two"})
        said = []
        assert rows(opened(folder, tmp_path, said=said)) == [("a.png", ("",)), ("b.png", ("two",))]
        assert any("a.json" in line for line in said)
        (folder / "a.txt").write_text("one")
        assert rows(opened(folder, tmp_path)) == [("a.png", ("one",)), ("b.png", ("two",))]
        for name in ("a.txt", "b.txt"):
            (folder / name).unlink()
        with pytest.raises(DatasetError, match="2 images but no captions"):
            opened(folder, tmp_path)


class TestKohyasMetadata:
    def test_captions_by_path(self, folder, tmp_path):
        listed = {
            "C:\\data\\x\\0.png": {"caption": "a thing", "tags": "x, y"},
            "/home/me/x/1": {"tags": "only tags", "train_resolution": [64, 64]},
            "/home/me/y/1.png": {"caption": "another folder's"},
            "/home/me/x/e\u0301.png": {"caption": "an accent"},
            "/home/me/x/gone.png": {"caption": "of no image"},
        }
        files = images("x/0.png", "x/1.png", "x/2.png", "x/\u00e9.png", "x/3.png") | {"x/2.txt": "beside"}
        said = []
        folder = write(folder, files | {"meta_cap.json": json.dumps(listed, indent=1)})
        dataset = opened(folder, tmp_path, said=said)
        assert rows(dataset) == [
            ("x/0.png", ("a thing, x, y",)),
            ("x/1.png", ("only tags",)),
            ("x/2.png", ("beside",)),
            ("x/3.png", ("",)),
            ("x/\u00e9.png", ("an accent",)),
        ]
        assert dataset.caption_rules["meta_cap.json, kohya's"] == 3
        assert said == ["dataset: 1 of 5 images has no caption and gets an empty caption: x/3.png"]

    def test_of_other_images(self, folder, tmp_path):
        write(
            folder, images("a.png") | {"meta.json": json.dumps({f"/x/{i}.png": {"caption": "c"} for i in range(2000)})}
        )
        with pytest.raises(
            DatasetError, match=r"1 image but no captions.*meta.json \(kohya's metadata\) lists none"
        ) as caught:
            opened(folder, tmp_path)
        assert len(str(caught.value)) < 500

    def test_a_name_in_two_folders_is_no_guess(self, folder, tmp_path):
        listed = {"/a/0.png": {"caption": "one"}, "/b/0.png": {"caption": "two"}}
        write(folder, images("0.png", "b/0.png") | {"meta.json": json.dumps(listed)})
        assert rows(opened(folder, tmp_path)) == [("0.png", ("",)), ("b/0.png", ("two",))]


@pytest.mark.parametrize("text", ['{"caption": "\u00e9"}'.encode("latin-1"), b'{"caption": 5}', b'{"tags": {}}', b"["])
def test_json_that_holds_no_caption_is_not_told_as_superseded(text, folder, tmp_path):
    write(folder, images("0.png", "1.png") | {"0.json": text, "1.txt": "one"})
    said = []
    opened(folder, tmp_path, said=said)
    assert said[1].startswith("dataset: 1 JSON file beside an image has no caption")
    assert said[1].endswith(": 0.json")
    (folder / "1.txt").unlink()
    with pytest.raises(DatasetError, match=r"no captions.*; 1 JSON file beside an image has no caption"):
        opened(folder, tmp_path)
