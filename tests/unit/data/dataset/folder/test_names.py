"""Names in tables, archives and folders: accents in two forms, Windows' backslashes, what is not there."""

import unicodedata

import pytest

from tests.support.datasets import PICTURES, metadata, opened, put, write_tar

NAME = "café été"
FORMS = [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC"), ("NFD", "NFD")]


@pytest.mark.parametrize(("there", "written"), FORMS)
def test_metadata(there, written, tmp_path):
    put(tmp_path / "data", unicodedata.normalize(there, f"{NAME}/{NAME}.png"))
    metadata(tmp_path / "data", unicodedata.normalize(written, f"{NAME}/{NAME}.png"))
    lines = []
    dataset = opened(tmp_path, name=tmp_path / "data", report=lines.append)
    assert dataset.image_bytes(0) == PICTURES[0]
    assert lines == []


@pytest.mark.parametrize(("there", "written"), FORMS)
@pytest.mark.parametrize("suffix", [".txt", ".png.txt", ".caption", ".json"])
def test_captions_beside_images(suffix, there, written, tmp_path):
    put(tmp_path / "data", unicodedata.normalize(there, f"{NAME}.png"))
    text = '{"text": "a cat"}' if suffix == ".json" else "a cat"
    put(tmp_path / "data", unicodedata.normalize(written, f"{NAME}{suffix}"), text)
    lines = []
    assert opened(tmp_path, name=tmp_path / "data", report=lines.append).captions(0) == ("a cat",)
    assert lines == []


@pytest.mark.parametrize(("there", "written"), FORMS)
def test_tars(there, written, tmp_path):
    members = [(f"{unicodedata.normalize(there, NAME)}.png", PICTURES[0])]
    members += [(f"{unicodedata.normalize(written, NAME)}.txt", b"a cat")]
    write_tar(tmp_path / "x.tar", members)
    assert opened(tmp_path, name=tmp_path / "x.tar").captions(0) == ("a cat",)


def test_the_name_as_written_comes_first(tmp_path):
    """Linux has both at once."""
    for number, form in enumerate(("NFC", "NFD")):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / unicodedata.normalize(form, "é.png")).write_bytes(PICTURES[number])
    metadata(tmp_path / "data", *(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")))
    dataset = opened(tmp_path, name=tmp_path / "data")
    assert [dataset.image_bytes(row) for row in range(2)] == PICTURES[:2]


def test_dots_in_the_names_of_a_local_tar(tmp_path):
    members = []
    for number in range(3):
        members += [(f"2024.01.0{number} cat.jpg", PICTURES[number]), (f"2024.01.0{number} cat.txt", b"one\ntwo\n")]
    write_tar(tmp_path / "x.tar", members)
    dataset = opened(tmp_path, name=tmp_path / "x.tar")
    assert [dataset.image_bytes(row) for row in range(len(dataset))] == PICTURES
    assert dataset.captions(0) == ("one", "two")  # as beside images, which is how one by URL is read


def test_lines_that_are_joined_beside_images_are_joined_there(tmp_path):
    members = [("2024.01 cat.jpg", PICTURES[0]), ("2024.01 cat.txt", b"one\ntwo\n")]
    write_tar(tmp_path / "x.tar", members)
    assert opened(tmp_path, name=tmp_path / "x.tar", caption_lines="joined").captions(0) == ("one two",)


def test_dots_that_are_extensions_stay_so(tmp_path):
    members = [("1.png", PICTURES[0]), ("1.seg.png", PICTURES[1]), ("1.txt", b"one\ntwo")]
    write_tar(tmp_path / "x.tar", members)
    dataset = opened(tmp_path, name=tmp_path / "x.tar", mask_column="seg.png")
    assert (len(dataset), dataset.captions(0), dataset.mask_bytes(0)) == (1, ("one\ntwo",), PICTURES[1])
