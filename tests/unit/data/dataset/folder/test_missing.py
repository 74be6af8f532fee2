"""Files that metadata lists and the folder lacks: what may be meant, and what to do."""

import json

import pytest

from engine.core.errors import DatasetError
from tests.support.datasets import metadata, opened, put

MEANT = {
    "backslashes": ("metadata.jsonl", "images/{}.png", "images\\{}.png", "write images/0.png, not images\\0.png"),
    "its own folder": ("train/metadata.jsonl", "train/{}.png", "train/{}.png", "write 0.png, not train/0.png"),
    "the whole path": ("metadata.jsonl", "x/{}.png", "C:\\me\\x\\{}.png", "write x/0.png, not C:\\me\\x\\0.png"),
    "no folder": ("metadata.jsonl", "images/{}.png", "{}.png", "write images/0.png, not 0.png"),
    "another case": ("metadata.jsonl", "{}.PNG", "{}.png", "write 0.PNG, not 0.png"),
    "one folder up": ("a/metadata.jsonl", "b/{}.png", "b/{}.png", "write ../b/0.png, not b/0.png"),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_is_meant_is_told(case, tmp_path):
    at, there, written, advice = MEANT[case]
    for number in range(3):
        put(tmp_path / "data", there.format(number))
    metadata(tmp_path / "data", *map(written.format, range(3)), at=at)
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, name=tmp_path / "data")
    assert "none of the 3 files listed in the metadata is found" in str(caught.value)
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize("name", ["captions.json", "t/captions.jsonl", "data.csv"])
def test_a_table_of_another_name_gets_the_same_advice(name, tmp_path):
    put(tmp_path / "data", "images/0.png")
    table = tmp_path / "data" / name
    table.parent.mkdir(exist_ok=True)
    table.write_text("path,text\n0.png,one\n" if name.endswith("csv") else json.dumps({"path": "0.png", "text": "one"}))
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, name=tmp_path / "data", image_column="path")
    assert "the only file listed in the metadata is not found: " in str(caught.value)
    where = "../images/0.png" if "/" in name else "images/0.png"
    assert "path is a path from " in str(caught.value)
    assert str(caught.value).endswith(f"write {where}, not 0.png")


def test_an_address_is_no_missing_file(tmp_path):
    put(tmp_path / "data", "0.png")
    metadata(tmp_path / "data", "0.png", "https://example.org/1.png")
    lines = []
    with pytest.raises(DatasetError, match="images are not downloaded one by one"):
        opened(tmp_path, name=tmp_path / "data", report=lines.append)
    assert not any("not there" in line for line in lines)


def test_some_that_are_missing_are_noted(tmp_path):
    put(tmp_path / "data", "images/0.png")
    put(tmp_path / "data", "images/1.png")
    metadata(tmp_path / "data", "images/0.png", "images\\1.png", "gone.png")
    lines = []
    assert len(opened(tmp_path, name=tmp_path / "data", report=lines.append)) == 3
    assert any(
        "2 images listed in the metadata, file not found: gone.png, images\\1.png; " in line
        and line.endswith("write images/1.png, not images\\1.png")
        for line in lines
    )


def test_an_archive_beside_the_metadata(tmp_path):
    put(tmp_path / "data", "images.zip", "PK")
    metadata(tmp_path / "data", "0.png", "1.png")
    with pytest.raises(DatasetError, match=r"images\.zip is not unpacked: unpack it there"):
        opened(tmp_path, name=tmp_path / "data")


@pytest.mark.parametrize("name", ["images.zip", "images.z01", "images.zip.001"])
def test_nothing_but_an_archive(name, tmp_path):
    put(tmp_path / "data", name, "PK")
    with pytest.raises(DatasetError, match="1 archive is not read, unpack it there"):
        opened(tmp_path, name=tmp_path / "data")


@pytest.mark.parametrize("name", ["images.z01", "images.zip.002", "images.part2.rar"])
def test_a_part_of_an_archive(name, tmp_path):
    put(tmp_path, name, "x")
    with pytest.raises(DatasetError, match="is one part of a split archive: join its parts"):
        opened(tmp_path, name=tmp_path / name)


def test_types_of_many_kinds_are_a_handful(tmp_path):
    put(tmp_path / "data", "a.png")
    put(tmp_path / "data", "a.txt", "a cat")
    for number in range(500):
        put(tmp_path / "data", f"x.kind{number}", "x")
    lines = []
    opened(tmp_path, name=tmp_path / "data", report=lines.append)
    assert "500 other files are not used" in lines[0] and len(lines[0]) < 250
