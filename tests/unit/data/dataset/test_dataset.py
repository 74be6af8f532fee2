"""Datasets: every form one comes in, what rows may name, and fingerprints that follow content alone."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.core.errors import DatasetError, ModelError, OutputError, TemporaryError
from engine.core.files import stat_cache
from engine.core.limits import Limits
from engine.data.dataset import fingerprint, open_dataset
from engine.data.fetch import hub
from engine.data.media.transforms import UnreadableImage
from engine.task.task import Dataset, Model, Task

CAPTIONS = ["a red square", "ein grünes Quadrat", ""]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TICK = 0.02
"""Longer than the kernel's clock for files stands still."""


def picture(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), ((index * 40) % 256, index // 7, 9)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(index) for index in range(3)]


def opened(tmp_path: Path, *, report=lambda line: None, revision=None, limits=Limits(), **dataset):  # noqa: B008
    task = Task(model=Model(name="m"), dataset=Dataset(**{k: str(v) for k, v in dataset.items()}))
    return open_dataset(task, cache_dir=tmp_path / "cache", revision=revision, report=report, limits=limits)


def content(dataset) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(dataset.image_bytes(i), dataset.captions(i)) for i in range(len(dataset))]


EXPECTED = [(image, (caption,)) for image, caption in zip(PICTURES, CAPTIONS, strict=True)]


def write_images(folder: Path, names=("b.png", "a.png", "sub/c.png")) -> list[str]:
    for name, data in zip(names, PICTURES, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return list(names)


def write_jsonl(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def embedded_table(images=PICTURES, captions=CAPTIONS) -> pa.Table:
    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    return pa.table({"id": range(len(images)), "image": cells, "text": captions})


# --------------------------------------------------------------------------------------------------- source forms


def metadata_jsonl(folder):
    names = write_images(folder)
    rows = [{"file_name": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


def metadata_csv(folder):
    names = write_images(folder)
    lines = [f'{name},"{text}"' for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "metadata.csv").write_text("\ufefffile_name,text\r\n" + "\r\n".join(lines) + "\r\n")
    return folder


def metadata_parquet(folder):
    names = write_images(folder)
    pq.write_table(pa.table({"file_name": names, "text": CAPTIONS}), folder / "metadata.parquet")
    return folder


def metadata_in_subfolders(folder):
    for name, rows in (("x", [0, 1]), ("y", [2])):
        write_jsonl(folder / name / "metadata.jsonl", [{"file_name": f"{i}.png", "text": CAPTIONS[i]} for i in rows])
        for i in rows:
            (folder / name / f"{i}.png").write_bytes(PICTURES[i])
    return folder


def parquet_file(folder):
    folder.mkdir()
    pq.write_table(embedded_table(), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def parquet_folder(folder):
    (folder / "data").mkdir(parents=True)
    pq.write_table(embedded_table(PICTURES[:2], CAPTIONS[:2]), folder / "data/train-00000-of-00002.parquet")
    pq.write_table(embedded_table(PICTURES[2:], CAPTIONS[2:]), folder / "data/train-00001-of-00002.parquet")
    pq.write_table(embedded_table(PICTURES[:1], ["no"]), folder / "data/test-00000-of-00001.parquet")
    return folder


def parquet_of_paths(folder):
    names = write_images(folder)
    pq.write_table(pa.table({"image": names, "text": CAPTIONS}), folder / "table.parquet")
    return folder


def parquet_of_binaries(folder):
    folder.mkdir()
    table = pa.table({"image": pa.array(PICTURES, pa.large_binary()), "text": pa.array(CAPTIONS).dictionary_encode()})
    pq.write_table(table, folder / "table.parquet")
    return folder


def saved_dataset(folder):
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder, num_shards=2)
    return folder


def saved_dataset_dict(folder):
    import datasets

    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    splits = {"test": datasets.Dataset.from_dict({"image": [], "text": []}), "train": datasets.Dataset.from_dict(rows)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def arrow_file(folder):
    folder.mkdir()
    table = embedded_table()
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def webdataset_txt(folder):
    members = []
    for i, caption in enumerate(CAPTIONS):
        members += [(f"s/{i:03}.png", PICTURES[i]), (f"s/{i:03}.txt", caption.encode() + b"\n")]
    return write_tar(folder / "shard-000.tar", members)


def webdataset_json(folder):
    members = []
    for i, caption in enumerate(CAPTIONS):
        members += [(f"{i}.jpg", PICTURES[i]), (f"{i}.json", json.dumps({"text": caption, "n": i}).encode())]
    write_tar(folder / "a.tar", members)
    return folder


def jsonl_table(folder):
    names = write_images(folder)
    rows = [{"image": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    write_jsonl(folder / "data.jsonl", rows)
    return folder / "data.jsonl"


def json_list(folder):
    names = write_images(folder)
    rows = [{"image": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "data.json").write_text(json.dumps(rows, indent=1))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def csv_table_with_absolute_paths(folder):
    names = write_images(folder)
    lines = [f'{(folder / name).absolute()},"{text}"' for name, text in zip(names, CAPTIONS, strict=True)]
    (folder / "data.csv").write_text("image,text\n" + "\n".join(lines))
    return folder / "data.csv"


FORMS = [
    metadata_jsonl, metadata_csv, metadata_parquet, metadata_in_subfolders, parquet_file, parquet_folder,
    parquet_of_paths, parquet_of_binaries, saved_dataset, saved_dataset_dict, arrow_file, webdataset_txt,
    webdataset_json, jsonl_table, json_list, csv_table_with_absolute_paths,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_rows_and_fingerprint(form, tmp_path):
    dataset = opened(tmp_path, name=form(tmp_path / "data"))
    assert content(dataset) == EXPECTED
    assert dataset.revision is None
    assert dataset.fingerprint == opened(tmp_path, name=metadata_jsonl(tmp_path / "reference")).fingerprint


def test_names_are_for_messages(tmp_path):
    assert opened(tmp_path, name=metadata_jsonl(tmp_path / "a")).name(2) == "sub/c.png"
    assert opened(tmp_path, name=parquet_of_binaries(tmp_path / "b")).name(2) == "row 2 of table.parquet"
    assert opened(tmp_path, name=webdataset_txt(tmp_path / "c")).name(2) == "shard-000.tar/s/002.png"


def test_other_columns(tmp_path):
    names = write_images(tmp_path / "a")
    rows = [{"photo_file_name": name, "caption": [name, "x"] if name == "a.png" else name} for name in names]
    write_jsonl(tmp_path / "a/metadata.jsonl", rows)
    dataset = opened(tmp_path, name=tmp_path / "a", image_column="photo", caption_column="caption")
    assert [dataset.captions(i) for i in range(3)] == [("b.png",), ("a.png", "x"), ("sub/c.png",)]


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_caption_lists_in_arrow_types(tmp_path, type_):
    captions = pa.array([["a", "b"], ["c", ""], ["d", "e"]], type_)
    pq.write_table(embedded_table().set_column(2, "text", captions), tmp_path / "t.parquet")
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert [dataset.captions(i) for i in range(3)] == [("a", "b"), ("c", ""), ("d", "e")]


def test_metadata_reports_images_that_are_dropped_or_missing(tmp_path):
    folder = metadata_jsonl(tmp_path / "data")
    (folder / "extra.png").write_bytes(PICTURES[0])
    (folder / "a.png").unlink()
    lines = []
    dataset = opened(tmp_path, name=folder, report=lines.append)
    assert len(dataset) == 3
    assert any("1 image is not used" in line and "extra.png" in line for line in lines)
    assert any("1 image is named by metadata rows but not there: a.png" in line for line in lines)
    with pytest.raises(UnreadableImage, match="No such file"):
        dataset.image_bytes(1)


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


def test_captions_stay_as_written_in_csv(tmp_path):
    write_images(tmp_path / "a")
    (tmp_path / "a/metadata.csv").write_text(
        'text,file_name\n007,b.png\nnull,a.png\n"two\nlines, ""quoted""",sub/c.png\n'
    )
    dataset = opened(tmp_path, name=tmp_path / "a")
    assert [dataset.captions(i)[0] for i in range(3)] == ["007", "null", 'two\nlines, "quoted"']


# ---------------------------------------------------------------------------------------------------------- splits


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
        "dataset: 1 data file is of other splits and not trained on: validation/metadata.jsonl",
        "dataset: 1 image is of other splits and not trained on: validation/x.png",
    ]


def test_saved_splits_without_train_are_listed(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"image": [], "text": []})
    datasets.DatasetDict({"a": part, "b": part}).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetError, match="a, b"):
        opened(tmp_path, name=tmp_path / "d")


# ---------------------------------------------------------------------------------------------------------- errors


def jsonl_of(*rows):
    def build(folder):
        write_images(folder)
        write_jsonl(folder / "metadata.jsonl", rows)
        return folder

    return build


def parquet_of(**columns):
    def build(folder):
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "t.parquet")
        return folder

    return build


def raw(name, data):
    def build(folder):
        write_images(folder)
        (folder / name).write_bytes(data)
        return folder

    return build


def hidden_png():
    return [{"bytes": PICTURES[0], "path": None}]


GOOD = {"file_name": "a.png", "text": "x"}
TWO_COLUMNS = pa.Table.from_arrays(
    [pa.array(PICTURES), pa.array(CAPTIONS), pa.array(CAPTIONS)], ["image", "text", "text"]
)

PAIR = [("1.png", b"x"), ("1.txt", b"y")]
IMAGES_TEXT_N = r"'image'.*picture \(images\), text \(text\), n \(numbers\)"

BAD = {
    "no image column": (jsonl_of({"picture": "a.png", "text": "x", "n": 1}), IMAGES_TEXT_N),
    "no caption column": (jsonl_of({"file_name": "a.png", "caption": "x"}), r"caption_column.*caption \(text\)"),
    "no parquet column": (parquet_of(image=hidden_png(), label=[1]), r"'text'.*image \(images\), label \(int64\)"),
    "numbers as images": (parquet_of(image=[1], text=["x"]), "'image'.*holds int64, not images"),
    "numbers as captions": (parquet_of(image=hidden_png(), text=[1]), "'text'.*holds int64"),
    "numbers as captions in json": (jsonl_of(GOOD, {"file_name": "a.png", "text": 5}), "row 1 .*holds 5"),
    "mixed list": (jsonl_of({"file_name": "a.png", "text": ["x", None]}), r"row 0 .*\['x', None\]"),
    "null caption": (jsonl_of(GOOD, {"file_name": "a.png", "text": None}), "no caption.*1 row .*row 1"),
    "no caption key": (jsonl_of(GOOD, GOOD, {"file_name": "a.png"}), "no caption.*row 2"),
    "empty caption list": (jsonl_of({"file_name": "a.png", "text": []}), "no caption.*row 0"),
    "null in parquet": (parquet_of(image=hidden_png() * 3, text=["x", None, None]), "2 rows.*row 1"),
    "all null in parquet": (parquet_of(image=hidden_png(), text=pa.nulls(1)), "no caption"),
    "null in a parquet list": (parquet_of(image=hidden_png() * 2, text=[["x"], ["y", None]]), "row 1"),
    "empty parquet list": (parquet_of(image=hidden_png() * 2, text=[["x"], []]), "row 1"),
    "image is no path": (jsonl_of({"file_name": ["a.png"], "text": "x"}), "row 0.*expected a path"),
    "lone surrogate": (raw("metadata.jsonl", b'{"file_name": "a.png", "text": "\\ud800"}'), "Unicode"),
    "not json": (raw("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\nnope\n'), "line 2 of metadata.jsonl"),
    "not an object": (raw("metadata.jsonl", b"[1, 2]"), "expected an object"),
    "deep json": (raw("metadata.jsonl", b'{"a":' + b"[" * 200_000), "line 1"),
    "latin-1": (raw("metadata.csv", "file_name,text\na.png,\xe9\n".encode("latin-1")), "metadata.csv"),
    "unquoted comma": (raw("metadata.csv", b"file_name,text\na.png,x, y\n"), "line 2.*quotes"),
    "doubled header": (raw("metadata.csv", b"text,text\na,b\n"), "two columns"),
    "doubled column": (lambda f: f.mkdir() or pq.write_table(TWO_COLUMNS, f / "t.parquet") or f, "several columns"),
    "html as parquet": (raw("t.parquet", b"<html>404</html>"), "t.parquet cannot be read as parquet"),
    "empty parquet file": (raw("t.parquet", b""), "t.parquet cannot be read"),
    "html as arrow": (raw("t.arrow", b"<html>404</html>"), "t.arrow cannot be read"),
    "html as tar": (raw("t.tar", b"<html>404</html>"), "t.tar cannot be read"),
    "no rows": (raw("metadata.jsonl", b"\n"), "no rows"),
    "no rows in parquet": (parquet_of(image=pa.array([], pa.binary()), text=pa.array([], pa.string())), "no rows"),
    "two metadata files": (lambda f: metadata_csv(metadata_jsonl(f)), "more than one of"),
    "images alone": (lambda f: write_images(f) and f, "3 images but no captions"),
    "nothing": (lambda f: f.mkdir() or f, "nothing to train on"),
    "saved files elsewhere": (raw("state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}'), "state.json"),
    "splits elsewhere": (raw("dataset_dict.json", b'{"splits": ["../x"]}'), "dataset_dict.json"),
    "tar without captions": (lambda f: write_tar(f / "a.tar", [("1.png", PICTURES[0])]), r"'text'.*png \(images\)"),
    "tar sample without image": (lambda f: write_tar(f / "a.tar", [*PAIR, ("2.txt", b"y")]), "'/2'"),
    "tar with a name twice": (lambda f: write_tar(f / "a.tar", [("1.png", b"x"), ("1.png", b"y")]), "twice"),
    "an archive": (lambda f: write_images(f) and (f / "x.zip").write_bytes(b"PK") and f / "x.zip", "unpack an archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_broken_datasets_say_what_and_where(case, tmp_path):
    build, message = BAD[case]
    with pytest.raises(DatasetError, match=message) as caught:
        opened(tmp_path, name=build(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_truncated_tables_are_refused(tmp_path):
    for form in (parquet_file, webdataset_txt, arrow_file):
        path = form(tmp_path / form.__name__)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 57 // 100])
        with pytest.raises(DatasetError):
            opened(tmp_path, name=path)


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        opened(tmp_path, name=tmp_path / "nowhere")


def test_a_local_configuration_is_a_folder(tmp_path):
    metadata_jsonl(tmp_path / "d/small")
    assert content(opened(tmp_path, name=tmp_path / "d", config_name="small")) == EXPECTED
    for other in ("large", "..", "../d", "small/sub"):
        with pytest.raises(DatasetError, match="config_name"):
            opened(tmp_path, name=tmp_path / "d", config_name=other)


def test_a_parquet_file_that_unpacks_without_end(tmp_path):
    pq.write_table(pa.table({"image": [bytes(1 << 16)] * 100, "text": ["x"] * 100}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 17
    with pytest.raises(DatasetError, match="unpacks to more"):
        opened(tmp_path, limits=Limits(max_dataset_bytes=1 << 20), name=tmp_path / "t.parquet")
    assert not list((tmp_path / "cache/tables").iterdir())


def test_odd_file_names_make_one_line(tmp_path):
    folder = metadata_jsonl(tmp_path / "d")
    (folder / os.fsdecode(b"new\nline \xe9.png")).write_bytes(PICTURES[0])
    lines = []
    opened(tmp_path, name=folder, report=lines.append)
    assert len(lines) == 1
    assert lines[0].isprintable()


# ----------------------------------------------------------------------------------------------------- confinement


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Stands for a finished download: dataset.url gives the folder `tmp_path/fetched`."""
    module = types.ModuleType("engine.data.fetch")
    module.fetch_dataset = lambda url, cache_dir, **options: tmp_path / "fetched"
    monkeypatch.setitem(sys.modules, "engine.data.fetch", module)
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURES[0])
    return tmp_path / "fetched"


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


def test_bytes_win_over_a_path_that_is_only_a_name(fetched, tmp_path):
    fetched.mkdir()
    cells = [{"bytes": PICTURES[1], "path": "/etc/passwd"}]
    pq.write_table(pa.table({"image": cells, "text": ["x"]}), fetched / "t.parquet")
    assert content(opened(tmp_path, url="https://example.org/x")) == [(PICTURES[1], ("x",))]


@pytest.mark.parametrize("value", ["http://127.0.0.1/x.png", "zip://a::b", "file:///x.png"])
def test_local_rows_name_no_urls_either(value, tmp_path):
    write_jsonl(tmp_path / "d/metadata.jsonl", [{"file_name": value, "text": "x"}])
    with pytest.raises(DatasetError, match="never fetched"):
        opened(tmp_path, name=tmp_path / "d")


def test_colons_and_dots_in_file_names_are_harmless(fetched, tmp_path):
    names = write_images(fetched, ("12:30.png", "a..b.png", "..png"))
    write_jsonl(fetched / "metadata.jsonl", [{"file_name": n, "text": "x"} for n in names])
    assert len(content(opened(tmp_path, url="https://example.org/x"))) == 3


# ---------------------------------------------------------------------------------------------------- fingerprints


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


@pytest.fixture
def computed(monkeypatch):
    """How often a fingerprint was computed; files count as settled after a tick of the kernel's clock."""
    from engine.data.dataset import fingerprints as module

    found = []
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 0)
    monkeypatch.setattr(stat_cache, "_keeps_change_times", lambda device: True)
    monkeypatch.setattr(module, "fingerprint", lambda parts: found.append(1) or fingerprint(parts))
    return found


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


def test_a_full_cache_is_an_output_error(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        opened(tmp_path, name=parquet_file(tmp_path / "data"))


# ------------------------------------------------------------------------------------------------------------- Hub


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """The Hub as far as the code sees it: `load_dataset` and `repo_info`, with a journal of calls."""
    import datasets
    import huggingface_hub

    calls = []
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": CAPTIONS}
    state = types.SimpleNamespace(calls=calls, splits={"train": datasets.Dataset.from_dict(rows)}, trouble=[])

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if state.trouble:
            raise state.trouble.pop(0)
        return datasets.DatasetDict(state.splits)

    def repo_info(self, repo_id, *, repo_type, revision):
        calls.append(("repo_info", repo_id, revision))
        return types.SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    real_sleep, here = time.sleep, threading.current_thread()

    def sleep(seconds):  # other tests' server threads may sleep too
        if threading.current_thread() is here:
            calls.append(("sleep", seconds))
        else:
            real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return state


def test_hub_dataset_is_loaded_at_a_commit(fake_hub, tmp_path):
    dataset = opened(tmp_path, name="someone/things", config_name="small")
    assert content(dataset) == EXPECTED
    assert dataset.revision == COMMIT
    assert dataset.fingerprint == opened(tmp_path, name=metadata_jsonl(tmp_path / "reference")).fingerprint
    (args, kwargs) = fake_hub.calls[1]
    assert args == ("someone/things", "small")
    assert kwargs["revision"] == COMMIT
    assert Path(kwargs["cache_dir"]).is_relative_to(tmp_path / "cache")
    assert "trust_remote_code" not in kwargs


def test_hub_dataset_stays_at_the_commit_of_its_chain(fake_hub, tmp_path):
    assert opened(tmp_path, name="someone/things", revision="f" * 40).revision == "f" * 40
    assert len(fake_hub.calls) == 1


def test_prepared_hub_data_need_the_hub_no_more(fake_hub, tmp_path):
    import datasets

    folder = tmp_path / "cache/hub" / f"someone--things@{COMMIT}"
    fake_hub.splits["train"].save_to_disk(folder / "saved")
    fake_hub.splits["train"] = datasets.load_from_disk(folder / "saved")
    first = opened(tmp_path, name="someone/things", revision=COMMIT)
    second = opened(tmp_path, name="someone/things", revision=COMMIT)
    assert content(second) == EXPECTED
    assert second.fingerprint == first.fingerprint
    assert len(fake_hub.calls) == 1


def test_hub_splits(fake_hub, tmp_path):
    fake_hub.splits = {"only": fake_hub.splits["train"]}
    assert len(opened(tmp_path, name="someone/things")) == 3
    fake_hub.splits = {"b": fake_hub.splits["only"], "a": fake_hub.splits["only"]}
    with pytest.raises(DatasetError, match=r"someone/things.*'train'.*a, b"):
        opened(tmp_path, name="someone/things")


def test_hub_columns_of_text_are_no_images(fake_hub, tmp_path):
    with pytest.raises(DatasetError, match="holds text, not images"):
        opened(tmp_path, name="someone/things", image_column="text")


def test_hub_rows_reach_only_into_the_caches(fake_hub, tmp_path):
    import datasets

    cached = tmp_path / "hub/x/1.png"
    archive = tmp_path / "hub/x/2.zip"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(PICTURES[0])
    with zipfile.ZipFile(archive, "w") as opened_zip:
        opened_zip.writestr("in/2.png", PICTURES[1])
    (tmp_path / "secret.png").write_bytes(PICTURES[2])

    def with_paths(*paths):
        cells = [{"bytes": None, "path": str(path)} for path in paths]
        fake_hub.splits = {"train": datasets.Dataset.from_dict({"image": cells, "text": ["x"] * len(cells)})}
        return opened(tmp_path, name="someone/things")

    dataset = with_paths(cached, f"zip://in/2.png::{archive}", f"zip://no.png::{archive}")
    assert [dataset.image_bytes(0), dataset.image_bytes(1)] == PICTURES[:2]
    with pytest.raises(UnreadableImage):
        dataset.image_bytes(2)
    for outside in (tmp_path / "secret.png", "https://example.org/x.png", f"zip://x::{tmp_path}/s.zip"):
        with pytest.raises(DatasetError, match="row 1"):
            with_paths(cached, outside)


def hub_error(status: int, kind="HfHubHTTPError"):
    import httpx2
    import huggingface_hub.errors

    response = httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))
    return getattr(huggingface_hub.errors, kind)(f"{status}", response=response)


def wrapped(cause):
    error = RuntimeError("a library's own words")
    error.__cause__ = cause
    return error


TROUBLES = {
    "connection": lambda: ConnectionError("no"),
    "time-out": TimeoutError,
    "503": lambda: hub_error(503),
    "429": lambda: hub_error(429),
    "wrapped": lambda: wrapped(hub_error(502)),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_trouble_is_tried_four_times_then_temporary(fake_hub, tmp_path, trouble):
    fake_hub.trouble = [trouble() for _ in range(3)]
    assert len(opened(tmp_path, name="someone/things")) == 3
    waits = [call[1] for call in fake_hub.calls if call[0] == "sleep"]
    assert len(waits) == 3
    assert sum(waits) < 60
    fake_hub.trouble = [trouble() for _ in range(4)]
    with pytest.raises(TemporaryError, match="someone/things"):
        opened(tmp_path, name="someone/things")


REFUSALS = {
    "not found": (lambda: hub_error(404, "RepositoryNotFoundError"), "HF_TOKEN"),
    "gated": (lambda: hub_error(403, "GatedRepoError"), "accept its terms.*HF_TOKEN"),
    "revision": (lambda: hub_error(404, "RevisionNotFoundError"), "no such revision"),
    "forbidden": (lambda: hub_error(403), "HF_TOKEN"),
    "wrapped": (lambda: wrapped(hub_error(404, "RepositoryNotFoundError")), "HF_TOKEN"),
    "unknown configuration": (lambda: ValueError("BuilderConfig 'x' not found. Available: y"), "Available: y"),
    "gone": (lambda: FileNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "gated.*HF_TOKEN"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_dataset_errors_at_once(case, fake_hub, tmp_path):
    build, message = REFUSALS[case]
    fake_hub.trouble = [build()]
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, name="someone/things")
    assert not [call for call in fake_hub.calls if call[0] == "sleep"]


def test_offline_uses_the_commit_last_seen(fake_hub, tmp_path, monkeypatch):
    import huggingface_hub

    assert hub.resolve_commit("someone/things", "dataset", "main") == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fake_hub.calls.clear()
    assert hub.resolve_commit("someone/things", "dataset", "main") == COMMIT
    assert not fake_hub.calls
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        hub.resolve_commit("someone/else", "model", "main")
    fake_hub.trouble = [ConnectionError("offline mode is enabled")]
    with pytest.raises(DatasetError):
        opened(tmp_path, name="someone/things")


def test_a_full_disk_while_downloading(fake_hub):
    def fill():
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="disk is full"):
        hub.with_retries(fill, "model 'x'")


def test_other_errors_pass_through(fake_hub):
    def fail():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        hub.with_retries(fail, "model 'x'")


# ----------------------------------------------------------------------------------------------------------- costs


def test_local_datasets_import_neither_torch_nor_datasets(tmp_path):
    folder, table, beside = metadata_jsonl(tmp_path / "a"), parquet_file(tmp_path / "b"), tmp_path / "c"
    write_images(beside)
    for name in ("a", "b", "sub/c"):
        (beside / f"{name}.txt").write_text("one\na (red:1.2) house")
    code = f"""
import sys
from pathlib import Path
from engine.data.dataset import open_dataset
from engine.core.limits import Limits
from engine.task.task import Dataset, Model, Task
for name in {[str(folder), str(table), str(beside)]}:
    task = Task(model=Model(name="m"), dataset=Dataset(name=name))
    open_dataset(task, cache_dir=Path({str(tmp_path)!r}, "cache"), revision=None, report=lambda line: None)
print([name for name in ("torch", "datasets", "huggingface_hub", "pandas") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_many_rows_take_seconds(tmp_path):
    rows = 100_000
    pq.write_table(
        pa.table({"image": pa.array([b"x"] * rows, pa.binary()), "text": [["a caption", "another"]] * rows}),
        tmp_path / "t.parquet",
    )
    start = time.monotonic()
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert len(dataset) == rows
    assert time.monotonic() - start < 8


def test_reading_a_parquet_dataset_holds_none_of_it(tmp_path):
    noise = np.random.default_rng(0).bytes(1 << 20)
    images = [noise[i:] + hashlib.sha256(bytes([i])).digest() for i in range(100)]
    pq.write_table(pa.table({"image": images, "text": ["x"] * 100}), tmp_path / "t.parquet", row_group_size=10)
    del images
    before = pa.total_allocated_bytes()
    dataset = opened(tmp_path, name=tmp_path / "t.parquet")
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert len(dataset.image_bytes(99)) > 1 << 19
