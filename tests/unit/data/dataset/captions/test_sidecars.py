"""Folders as artists have them: captions beside images, kohya's folders, images without a caption."""

import json
import os
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError
from engine.core.files import stat_cache
from engine.core.limits import Limits
from engine.data.dataset.fingerprints import fingerprint
from engine.data.dataset.open import open_dataset
from engine.data.fetch.archive import extract
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.caption_folders import images, opened, rows, write
from tests.support.datasets import PICTURES, TICK, picture, write_tar


def test_captions_beside_images(folder, tmp_path):
    files = images("a.png", "b.JPG", "c.d.png", "sub/e.png", "f.png", "g.png", "h.png")
    texts = {
        "a.txt": "a red square\n",
        "b.caption": "\ufeffein grünes Quadrat",
        "c.d.txt": "dots in the name",
        "sub/e.TXT": "  spaces \r\n\r\nanother caption\rand one more  \n",
        "f.png.txt": "named after the whole file",
        "g.txt": "text wins",
        "g.caption": "over caption",
        "h.txt": "",
        "README.txt": "about this folder",
    }
    dataset = opened(write(folder, files | texts), tmp_path)
    assert rows(dataset) == [
        ("a.png", ("a red square",)),
        ("b.JPG", ("ein grünes Quadrat",)),
        ("c.d.png", ("dots in the name",)),
        ("f.png", ("named after the whole file",)),
        ("g.png", ("text wins",)),
        ("h.png", ("",)),
        ("sub/e.png", ("spaces", "another caption", "and one more")),
    ]
    assert [dataset.image_bytes(i) for i in range(2)] == [files["a.png"], files["b.JPG"]]
    assert dataset.caption_rules == {"a .txt file beside the image": 6, "a .caption file beside the image": 1}


def test_the_same_rows_as_a_table_have_the_same_fingerprint(folder, tmp_path):
    write(folder, images("a.png", "b.png") | {"a.txt": "one", "b.txt": "two\nthree"})
    table = write(tmp_path / "table", images("a.png", "b.png"))
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": ["two", "three"]}]
    (table / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = opened(folder, tmp_path)
    assert before.fingerprint == opened(table, tmp_path).fingerprint
    (folder / "a.txt").write_text("another")
    assert opened(folder, tmp_path).fingerprint != before.fingerprint


def test_metadata_and_tables_come_first(folder, tmp_path):
    write(folder, images("a.png") | {"a.txt": "beside"})
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from the table"}\n')
    assert rows(opened(folder, tmp_path)) == [("a.png", ("from the table",))]
    (folder / "metadata.jsonl").rename(folder / "rows.jsonl")
    assert rows(opened(folder, tmp_path)) == [("a.png", ("from the table",))]


def test_a_table_about_something_else_is_passed_over(folder, tmp_path):
    write(folder, images("a.png") | {"a.txt": "beside", "rows.json": '{"url": "x", "caption": "y"}'})
    said = []
    assert rows(opened(folder, tmp_path, said=said)) == [("a.png", ("beside",))]
    assert any("rows.json" in line for line in said)
    (folder / "a.txt").unlink()
    with pytest.raises(DatasetError, match="no column 'image'"):
        opened(folder, tmp_path)


def test_of_a_kohya_project_only_the_images_are_trained_on(folder, tmp_path):
    files = images("img/10_sks dog/0.png", "reg/1_dog/0.png", "model/sample/last_10.png", "log/x.png")
    files |= {"img/10_sks dog/0.txt": "a dog", "reg/1_dog/0.txt": "dog", "model/last.json": "{}", "log/x.txt": "loss"}
    said = []
    dataset = opened(write(folder, files), tmp_path, said=said)
    assert set(rows(dataset)) == {("img/10_sks dog/0.png", ("a dog",))}
    assert said == [
        "dataset: 2 files of regularisation images (reg/ of a kohya project) are not trained on: "
        "reg/1_dog/0.png, reg/1_dog/0.txt",
        "dataset: 4 files of a kohya project's results (model/, log/, sample/) are not trained on: "
        "log/x.png, log/x.txt, model/last.json and 1 more",
    ]


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["10_sks dog/0.png", "reg/1_dog/0.png"], ["10_sks dog/0.png"]),
        (["10_sks dog/0.png", "reg/0.png", "sample/1.png"], ["10_sks dog/0.png", "reg/0.png", "sample/1.png"]),
        (["reg/1_dog/0.png"], ["reg/1_dog/0.png"]),
        (["img/0.png", "model/0.png"], ["img/0.png", "model/0.png"]),
        (["a/img/10_sks dog/0.png", "a/reg/1_dog/0.png", "a/log/1.png"], ["a/img/10_sks dog/0.png"]),
        (["a/img/2_x/0.png", "b/img/2_y/0.png", "b/reg/1_z/0.png"], ["a/img/2_x/0.png", "b/img/2_y/0.png"]),
        (["a/10_sks dog/0.png", "b/reg/1_dog/0.png"], ["a/10_sks dog/0.png", "b/reg/1_dog/0.png"]),
    ],
)
def test_a_folder_called_reg_is_not_always_kohyas(names, trained, folder, tmp_path):
    write(folder, images(*names) | {f"{name.removesuffix('png')}txt": "x" for name in names})
    assert [name for name, _ in sorted(set(rows(opened(folder, tmp_path))))] == trained


def test_images_without_a_caption_are_counted(folder, tmp_path):
    write(folder, images("a.png", "b.png", "c.png") | {"a.txt": "one", "d.txt": "nobody's"})
    said = []
    dataset = opened(folder, tmp_path, said=said)
    assert [captions for _, captions in rows(dataset)] == [("one",), ("",), ("",)]
    assert said == [
        "dataset: 2 of 3 images have no caption and get an empty caption: b.png, c.png",
        "dataset: 1 text file has no image of that name beside it: d.txt",
    ]
    said.clear()
    dataset = opened(folder, tmp_path, said=said, default_caption="a picture")
    assert [captions for _, captions in rows(dataset)] == [("one",), ("a picture",), ("a picture",)]
    assert "get dataset.default_caption 'a picture'" in said[0]


def test_no_captions_at_all_is_an_error_with_advice_unless_one_is_given(folder, tmp_path):
    write(folder, images("a.png", "b.png"))
    with pytest.raises(DatasetError, match=r"2 images but no captions.*cat\.txt.*default_caption.*trigger_word"):
        opened(folder, tmp_path)
    assert rows(opened(folder, tmp_path, default_caption="")) == [("a.png", ("",)), ("b.png", ("",))]
    assert rows(opened(folder, tmp_path, trigger_word="sks")) == [("a.png", ("",)), ("b.png", ("",))]


def serve(tmp_path, files, monkeypatch, links=()):
    """A dataset as it is after a download: its rows reach no further than its folder."""
    content = write(tmp_path / "content", files)
    for name, target in links:
        (content / name).symlink_to(target)
    monkeypatch.setattr("engine.data.fetch.fetch_dataset", lambda *args, **kwargs: content)
    wanted = Dataset(url="http://example.org/x")
    return lambda: open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)


def test_a_downloaded_link_leads_nowhere_outside(tmp_path, monkeypatch):
    secret = write(tmp_path, {"secret.txt": "the host's"}) / "secret.txt"
    open_it = serve(tmp_path, images("a.png"), monkeypatch, [("a.txt", secret)])
    with pytest.raises(DatasetError, match="leads out of the dataset's own folder"):
        open_it()
    (tmp_path / "content/a.txt").unlink()
    (tmp_path / "content/b.txt").write_text("inside")
    (tmp_path / "content/a.txt").symlink_to("b.txt")
    assert rows(open_it()) == [("a.png", ("inside",))]


def test_a_note_knows_what_was_asked(tmp_path, monkeypatch):
    """The fingerprint is noted: not the one of other captions or repeats."""
    content = write(tmp_path / "content", images("a.png", "b.png") | {"a.txt": "one"})
    monkeypatch.setattr("engine.data.fetch.fetch_dataset", lambda *args, **kwargs: content)
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
    monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)
    time.sleep(TICK)
    found = set()
    for changes in (
        {},
        {"default_caption": "x"},
        {"default_caption": "y"},
        {"repeats": 2},
        {"trigger_word": "sks"},
        {},
    ):
        wanted = Dataset(url="http://example.org/x", **changes)
        dataset = open_dataset(wanted, IMAGE, cache_dir=tmp_path, revision=None, report=lambda line: None)
        assert dataset.fingerprint == fingerprint(dataset.parts)
        found.add(dataset.fingerprint)
    assert len(found) == 4  # no caption and the trigger word alone are the same empty caption


@pytest.mark.parametrize("wrapper", ["", "set/"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_unpack_to_such_folders(tmp_path, kind, wrapper):
    files = images("5_sks/a.png", "5_sks/b.png") | {"5_sks/a.txt": b"one", "5_sks/b.caption": b"two"}
    files = {wrapper + name: data for name, data in files.items()}
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        write_tar(tmp_path / "x", list(files.items()))
    (tmp_path / "out").mkdir()
    extract(tmp_path / "x", tmp_path / "out", Limits())
    dataset = opened(tmp_path / "out", tmp_path)
    assert len(dataset) == 10 and {captions for _, captions in rows(dataset)} == {("one",), ("two",)}


def test_folders_of_another_split_are_left_out(folder, tmp_path):
    names = ["a.png", "test/b.png", "validation/c.png", "5_test/d.png"]
    write(folder, images(*names) | {name.replace("png", "txt"): name for name in names})
    said = []
    assert {name for name, _ in rows(opened(folder, tmp_path, said=said))} == {"a.png", "5_test/d.png"}
    assert said == [
        "dataset: 2 images belong to other splits and are not trained on, with 2 files beside: "
        "test/b.png, validation/c.png"
    ]
    write(folder, images("train/e.png") | {"train/e.txt": "e"})
    assert [name for name, _ in rows(opened(folder, tmp_path))] == ["train/e.png"]
    only = write(tmp_path / "only", images("test/a.png") | {"test/a.txt": "a"})
    assert [name for name, _ in rows(opened(only, tmp_path))] == ["test/a.png"]


def test_a_default_caption_fills_tables_too(tmp_path):
    folder = write(tmp_path / "jsonl", images("a.png", "b.png", "c.png"))
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": None}, {"file_name": "c.png"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = opened(folder, tmp_path, default_caption="x")
    assert [captions for _, captions in rows(dataset)] == [("one",), ("x",), ("x",)]
    assert dataset.caption_rules == {"metadata.jsonl": 1, "none of their own": 2}
    with pytest.raises(DatasetError, match="no caption in column 'text' of 2 rows"):
        opened(folder, tmp_path)


@pytest.mark.parametrize(
    "column, expected",
    [
        (None, [("x",)] * 3),
        (pa.array(["one", None, ""]), [("one",), ("x",), ("",)]),
        (pa.array([["one", "two"], None, []], pa.list_(pa.string())), [("one", "two"), ("x",), ("x",)]),
        (pa.array(["one", None, "one"]).dictionary_encode(), [("one",), ("x",), ("one",)]),
        (pa.nulls(3), [("x",)] * 3),
    ],
)
def test_a_default_caption_fills_parquet(tmp_path, column, expected):
    columns = {"image": PICTURES} | ({} if column is None else {"text": column})
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    dataset = opened(tmp_path / "t.parquet", tmp_path, default_caption="x")
    assert [dataset.captions(i) for i in range(3)] == expected
    with pytest.raises(DatasetError):
        opened(tmp_path / "t.parquet", tmp_path)


def test_a_tars_text_in_another_encoding_is_named(tmp_path):
    write_tar(tmp_path / "x.tar", [("1.png", PICTURES[0]), ("1.txt", "grün".encode("latin-1"))])
    with pytest.raises(DatasetError, match=r"'1\.txt' is not UTF-8 text: byte 0xfc"):
        opened(tmp_path / "x.tar", tmp_path)


def test_a_webdatasets_caption_files_are_read(tmp_path):
    write_tar(tmp_path / "x.tar", [("1.png", PICTURES[0]), ("1.caption", b"one"), ("2.png", PICTURES[1])])
    assert [captions for _, captions in rows(opened(tmp_path / "x.tar", tmp_path, default_caption="x"))] == [
        ("one",),
        ("x",),
    ]
    write_tar(tmp_path / "y.tar", [("1.png", b"1"), ("1.caption", b"one"), ("2.png", b"2"), ("2.txt", b"two")])
    assert [captions for _, captions in rows(opened(tmp_path / "y.tar", tmp_path))] == [("one",), ("two",)]


def test_names_that_are_no_unicode(folder, tmp_path):
    write(folder, images("a.png") | {"a.txt": "one"})
    odd = folder / os.fsdecode(b"\xe9.png")
    odd.write_bytes(np.random.default_rng(0).bytes(10))
    odd.with_suffix(".txt").write_text("two")
    dataset = opened(folder, tmp_path)
    assert [dataset.captions(i) for i in range(2)] == [("one",), ("two",)]
    assert dataset.name(1).isprintable() and dataset.image_bytes(1)


def test_columns_without_a_table_have_no_effect(folder, tmp_path):
    write(folder, images("a.png") | {"a.txt": "a red square"})
    said = []
    opened(folder, tmp_path, said=said, image_column="photo", caption_column="prompt")
    assert said == [
        "dataset: image_column 'photo' has no effect: data is read as images, not as a table",
        "dataset: caption_column 'prompt' has no effect: data is read as images, not as a table",
    ]
    said.clear()
    opened(folder, tmp_path, said=said)
    assert said == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("1girl, frieren ||| smile", "kohya's separator"),
        ("{red|blue} hair", "wildcards"),
        ("a __colors/warm__ house", "wildcards"),
        ("(masterpiece:1.2)", "weights"),
        ("a [cat : .5] here", "weights"),
        ("a dog <lora:x:1>", "tags such as"),
    ],
)
def test_marks_of_other_programs_are_told(caption, words, folder, tmp_path):
    write(folder, images("a.png", "b.png") | {"a.txt": "plain", "b.txt": f"plain\n{caption}"})
    beside, listed, embedded = [], [], []
    assert rows(opened(folder, tmp_path, said=beside))[1][1] == ("plain", caption)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": caption}))
    opened(folder, tmp_path, said=listed)
    table = pa.table({"image": [picture(0), picture(1)], "text": pa.array(["plain", caption], pa.string_view())})
    pq.write_table(table, tmp_path / "t.parquet")
    opened(tmp_path / "t.parquet", tmp_path, said=embedded)
    assert next(line for line in beside if words in line).endswith(": b.png")
    assert next(line for line in listed if words in line).endswith(": b.png")
    assert next(line for line in embedded if words in line).endswith(": row 1 of t.parquet")


@pytest.mark.parametrize(
    "caption",
    ["tag_one, tag two \\(artist\\)", "a ratio (16:9)", "at 12:30 (see p. 3)", "a | b {c}", "<a lora>", "[]"],
)
def test_plain_captions_are_not_marks(caption, folder, tmp_path):
    write(folder, images("a.png") | {"a.txt": caption})
    said = []
    opened(folder, tmp_path, said=said)
    assert said == []
