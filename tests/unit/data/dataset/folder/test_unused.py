"""What lies in a dataset's folder and is not trained on: each file has one reason, each reason one line."""

import io
import json
import os
import random
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.columns import Columns
from engine.data.dataset.folder.folders import read_local
from engine.data.dataset.folder.unused import Account
from engine.data.dataset.folder.walking import walk
from engine.data.dataset.images import Cells, Files
from engine.data.dataset.reach import Reach
from engine.data.dataset.tables.tables import Source
from engine.data.media.image import IMAGE
from tests.support.caption_folders import images, opened, rows, write
from tests.support.datasets import picture

NAMES = (
    *("a.png", "b.JPG", "c.jfif", "a.txt", "b.caption", "c.jfif.txt", "d.heic", "d.txt", "lost.txt", "a-masklabel.png"),
    *("z-masklabel.png", "a.json", "preset.json", "notes.csv", "clip.mp4", "more.zip", "last.safetensors", "README.md"),
    *("noending", ".DS_Store", "._a.png", ".hidden.png", "Thumbs.db", "b.cr2", "b.txt"),
)
TEXTS = {".json": '{"a": 1}', ".csv": "a,b\n1,2\n", ".txt": "a caption", ".caption": "another"}
FOLDERS = (
    "",
    "sub",
    "10_sks dog",
    "0_no",
    "test",
    "validation",
    "@eaDir",
    ".git",
    "__MACOSX",
    "img",
    "reg",
    "x.folder",
)


def source(tmp_path, **columns):
    return Source(Columns("image", "text", IMAGE, fallback="", **columns), Reach(), tmp_path / "cache", 1 << 30)


def read_with_account(folder, source, monkeypatch):
    """The rows, the account of the folder, and the lines."""
    kept, lines = [], []

    class Kept(Account):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr("engine.data.dataset.folder.folders.Account", Kept)
    parts = read_local(folder, source, lines.append)
    return parts, kept[0], lines


def arrow_stream():
    table, sink = pa.table({"image": [picture(0)], "text": ["one"]}), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet():
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(0)], "text": ["one"]}), sink)
    return sink.getvalue()


SAVED = {
    "state.json": '{"_data_files": [{"filename": "d.arrow"}]}',
    "dataset_info.json": "{}",
    "d.arrow": arrow_stream(),
}
FORMS = {
    "captions": {},
    "metadata": {"metadata.jsonl": '{"file_name": "10_x/first.png", "text": "said"}'},
    "metadata of two splits": {
        "train/metadata.jsonl": '{"file_name": "../10_x/first.png", "text": "said"}',
        "test/metadata.jsonl": '{"file_name": "a.png", "text": "said"}',
    },
    "table": {"sub/rows.parquet": parquet(), "test/rows.parquet": parquet()},
    "saved": SAVED,
    "saved splits": {"dataset_dict.json": '{"splits": ["train", "test"]}'}
    | {f"{split}/{name}": data for split in ("train", "test") for name, data in SAVED.items()},
}


def draw_files(drawn):
    """Files of all kinds, at all depths, of which none has the name of a folder."""
    files = {"10_x/first.png": picture(0), "10_x/first.txt": "first"}
    for index in range(drawn.randrange(40)):
        name = "/".join([*filter(None, drawn.choices(FOLDERS, k=drawn.randrange(3))), drawn.choice(NAMES)])
        files[name] = TEXTS.get(PurePosixPath(name).suffix, picture(index))
    return files


def draw_links(drawn, folder, elsewhere):
    """Links to files and folders inside, outside, above and nowhere."""
    write(elsewhere, draw_files(drawn))
    places = [*folder.rglob("*"), *elsewhere.rglob("*"), folder, elsewhere, folder.parent, folder / "nowhere"]
    for index in range(drawn.randrange(5)):
        name = drawn.choice(["link", "link.png", "link.txt", ".link", "10_link", "lost.heic"])
        place = drawn.choice([path for path in places if path.is_dir() and path.is_relative_to(folder)])
        (place / f"{index}{name}").symlink_to(drawn.choice(places))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(12))
def test_every_file_is_used_or_left_out_for_one_reason(seed, form, tmp_path, monkeypatch):
    drawn, folder = random.Random(f"{seed} {form}"), tmp_path / "data"
    files = draw_files(drawn) | FORMS[form]
    if form == "metadata":  # rows may name files of any kind
        listed = [json.dumps({"file_name": name, "text": "said"}) for name in files if drawn.random() < 0.5]
        files["metadata.jsonl"] += "\n".join(["", *listed])
    write(folder, files)
    has_links = seed % 2 == 1
    if has_links:
        draw_links(drawn, folder, tmp_path / "elsewhere")
    parts, account, said = read_with_account(folder, source(tmp_path), monkeypatch)
    left = [file for files in account.left.values() for file in files]
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert len(left) == len(set(left)) and account.used.isdisjoint(left)
    accounted = account.used | set(left)
    assert there <= accounted if has_links else there == accounted
    trained = {name for part in parts for name in paths_of(part.images, folder)}
    assert trained <= account.used
    others = account.used - trained - set(FORMS[form])
    assert all(name.endswith((".txt", ".caption", ".json")) for name in others)
    loud = [reason for reason in account.left if not reason.is_quiet]
    words = [{account.worded(reason.one), account.worded(reason.many)} for reason in loud]
    assert all(any(one in line for one in either for line in said) for either in words)
    assert [part.images.read(0) for part in parts]  # in every form there is something to train on


def paths_of(found, root):
    if isinstance(found, Files):
        return found.paths
    names = found.files() if isinstance(found, Cells) else []
    return [os.path.relpath(found.folder / name, root) for name in names]


def test_pictures_that_are_not_read_are_counted_by_type(tmp_path):
    names = images("1.jpg", "2.jfif", "3.jif", "4.JPE")
    others = dict.fromkeys(["IMG_5.HEIC", "6.jxl", "7.heic", "sub/8.CR2"], b"x")
    texts = {f"{name.rpartition('.')[0]}.txt": name for name in [*names, *others]}
    said = []
    dataset = opened(write(tmp_path / "data", names | others | texts), tmp_path, said=said)
    assert [name for name, _ in rows(dataset)] == ["1.jpg", "2.jfif", "3.jif", "4.JPE"]
    assert said == [
        "dataset: 4 pictures are in formats that are not supported, save them as JPEG or PNG "
        "(1 .cr2, 2 .heic, 1 .jxl), with 4 files beside: 6.jxl, 7.heic, IMG_5.HEIC and 1 more"
    ]


def test_nothing_but_such_pictures(tmp_path):
    write(tmp_path / "data", {"1.heic": b"x", "2.HEIC": b"x", "1.txt": "one"})
    with pytest.raises(
        DatasetError, match=r"nothing to train on: 2 pictures are in formats .* JPEG or PNG \(2 .heic\)"
    ):
        opened(tmp_path / "data", tmp_path)


def test_nothing_but_a_link_that_leads_nowhere_and_hidden_images(tmp_path):
    folder = write(tmp_path / "data", images(".hidden/a.png"))
    (folder / "10_dog").symlink_to(tmp_path / "not there")
    with pytest.raises(
        DatasetError,
        match=r"1 image is left out, hidden .*: \.hidden/a\.png; 1 link is broken, its target does not exist: 10_dog",
    ):
        opened(folder, tmp_path)


def test_what_is_called_like_a_readme_is_named_where_it_may_be_data(tmp_path):
    files = images("a.png", "readme.png", "license_plate.jpg") | {"notice_board.txt": "a caption", "readme.heic": b"x"}
    usual = dict.fromkeys(["README.md", "LICENSE-MIT", "readme_en.txt", "NOTICE.txt", "CITATION.cff"], b"x")
    said = []
    listed = {"metadata.jsonl": '{"file_name": "a.png", "text": "one"}'}
    opened(write(tmp_path / "data", files | usual | listed), tmp_path, said=said)
    assert said == [
        "dataset: 2 images are not used, not listed in the metadata: license_plate.jpg, readme.png",
        "dataset: 1 picture is in a format that is not supported, save it as JPEG or PNG (1 .heic): readme.heic",
        "dataset: 1 text file has no image of that name beside it: notice_board.txt",
    ]


def test_what_is_lost_archived_or_another_programs_is_named(tmp_path):
    files = images("a.png", "b-masklabel.png") | {
        "a.txt": "one",
        "a.caption": "two",
        "lost.txt": "three",
        "more.zip": b"x",
        "film.mp4": b"x",
        "last.safetensors": b"x",
        "LICENSE.txt": "free",
        "Thumbs.db": b"x",
    }
    said = []
    opened(write(tmp_path / "data", files), tmp_path, said=said)
    assert sorted(said) == [
        "dataset: 1 archive is not read, unpack it there to train on its content: more.zip",
        "dataset: 1 file beside an image is not read, the image's caption is taken from another file: a.caption",
        "dataset: 1 mask has no image of that name beside it: b-masklabel.png",
        "dataset: 1 other file is not used (1 .safetensors): last.safetensors",
        "dataset: 1 text file has no image of that name beside it: lost.txt",
        "dataset: 1 video is not read, save frames as images: film.mp4",
    ]


def test_folders_of_systems_are_left_out(tmp_path):
    names = ["a.png", "@eaDir/a.png/THUMB.jpg", ".thumbnails/a.png", "sub/__MACOSX/a.png", "#recycle/b.png"]
    said = []
    files = images(*names) | {"a.txt": "one", ".git/objects/00": b"x", "._a.png": b"x"}
    dataset = opened(write(tmp_path / "data", files), tmp_path, said=said)
    assert [name for name, _ in rows(dataset)] == ["a.png"]
    assert said == [
        "dataset: 4 images are left out, hidden or in folders of thumbnails or deleted files: "
        "#recycle/b.png, .thumbnails/a.png, @eaDir/a.png/THUMB.jpg and 1 more"
    ]


class TestLinks:
    def test_to_folders_and_files_are_followed(self, tmp_path):
        write(tmp_path / "elsewhere", images("1.png", "deep/2.png") | {"1.txt": "one", "deep/2.txt": "two"})
        write(tmp_path / "plain", images("x/1.png", "x/deep/2.png") | {"x/1.txt": "one", "x/deep/2.txt": "two"})
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "x").symlink_to(tmp_path / "elsewhere")
        dataset = opened(folder, tmp_path)
        assert rows(dataset) == [("x/1.png", ("one",)), ("x/deep/2.png", ("two",))]
        assert dataset.fingerprint == opened(tmp_path / "plain", tmp_path).fingerprint
        (tmp_path / "elsewhere/deep/2.png").write_bytes(picture(7))
        assert opened(folder, tmp_path).fingerprint != dataset.fingerprint

    def test_loops_end_and_no_folder_is_read_twice(self, tmp_path):
        folder = write(tmp_path / "data", images("a.png", "sub/b.png") | {"a.txt": "one", "sub/b.txt": "two"})
        write(tmp_path / "outside", images("c.png") | {"c.txt": "three"})
        (folder / "sub/up").symlink_to(folder)
        (folder / "again").symlink_to("sub")
        (tmp_path / "outside/round").symlink_to(tmp_path / "outside")
        (folder / "x").symlink_to(tmp_path / "outside")
        (folder / "y").symlink_to(tmp_path / "outside")
        said = []
        assert [name for name, _ in rows(opened(folder, tmp_path, said=said))] == ["a.png", "sub/b.png", "x/c.png"]
        assert said == [
            "dataset: 4 links lead to folders that are already read: again, sub/up, y and 1 more",
        ]

    def test_rows_may_name_files_by_way_of_any_link(self, tmp_path):
        folder = write(tmp_path / "data", images("sub/a.png", "sub/b.png"))
        (folder / "again").symlink_to("sub")
        write(folder, {"metadata.jsonl": '{"file_name": "again/a.png", "text": "one"}'})
        said = []
        assert opened(folder, tmp_path, said=said).image_bytes(0) == picture(0)
        assert said == [
            "dataset: 1 link leads to a folder that is already read: again",
            "dataset: 1 image is not used, not listed in the metadata: sub/b.png",
        ]

    def test_above_the_folder(self, tmp_path):
        folder = write(tmp_path / "top/data", images("a.png") | {"a.txt": "one"})
        write(tmp_path / "top/other", images("b.png") | {"b.txt": "two"})
        (folder / "up").symlink_to("..")
        assert [name for name, _ in rows(opened(folder, tmp_path))] == ["a.png", "up/other/b.png"]

    def test_that_lead_nowhere_are_named(self, tmp_path):
        folder = write(tmp_path / "data", images("a.png") | {"a.txt": "one"})
        (folder / "10_dog").symlink_to(tmp_path / "not there")
        said = []
        opened(folder, tmp_path, said=said)
        assert said == ["dataset: 1 link is broken, its target does not exist: 10_dog"]

    def test_hidden_ones_are_not_looked_into(self, tmp_path):
        folder = write(tmp_path / "data", images("a.png") | {"a.txt": "one"})
        write(tmp_path / "elsewhere", images("b.png"))
        (folder / ".cache").symlink_to(tmp_path / "elsewhere")
        assert walk(folder).hidden == []

    def test_of_downloaded_datasets_are_not_followed(self, tmp_path, monkeypatch):
        folder = write(tmp_path / "data", images("a.png") | {"a.txt": "one"})
        write(tmp_path / "elsewhere", images("b.png") | {"b.txt": "two"})
        (folder / "x").symlink_to(tmp_path / "elsewhere")
        within = Source(Columns("image", "text", IMAGE), Reach.within(folder), tmp_path / "cache", 1 << 30)
        parts, _, said = read_with_account(folder, within, monkeypatch)
        assert [list(part.images.paths) for part in parts] == [["a.png"]]
        assert said == ["dataset: 1 link to a folder is not followed, the dataset was downloaded: x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_behind_a_link(tmp_path):
    folder = write(tmp_path / "data", images("a.png") | {"a.txt": "one"})
    write(tmp_path / "closed", images("b.png"))
    (tmp_path / "closed").chmod(0)
    (folder / "x").symlink_to(tmp_path / "closed")
    try:
        with pytest.raises(DatasetError, match="cannot list"):
            opened(folder, tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o755)
