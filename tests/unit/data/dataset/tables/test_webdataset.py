"""WebDataset tars that are refused, alone and among others."""

import tarfile

import pytest

from engine.core.errors import DatasetError
from tests.support.datasets import PICTURES, opened, require_refused, write_tar

PAIR = [("1.png", b"x"), ("1.txt", b"y")]


BAD = {
    "tar without captions": (lambda f: write_tar(f / "a.tar", [("1.png", PICTURES[0])]), r"'text'.*png \(images\)"),
    "tar sample without image": (lambda f: write_tar(f / "a.tar", [*PAIR, ("2.txt", b"y")]), "'/2'"),
    "tar with a name twice": (lambda f: write_tar(f / "a.tar", [("1.png", b"x"), ("1.png", b"y")]), "twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case, tmp_path):
    build, message = BAD[case]
    require_refused(tmp_path, build, message)


def shards(folder, odd):
    """Nine tars of one sample each, and the bytes or members of a tenth among them."""
    for number in range(10):
        path = folder / f"{number:03}.tar"
        write_tar(path, [(f"{number}.png", PICTURES[0]), (f"{number}.txt", b"x")])
        if number == 4:
            path.write_bytes(odd(path.read_bytes())) if callable(odd) else write_tar(path, odd)
    return folder


def endless():
    """Return a header of no known type with a size that no file has."""
    member = tarfile.TarInfo("1.png")
    member.type, member.size = b"V", 2**80
    return member.tobuf(tarfile.GNU_FORMAT)


PAIR_5 = [("5.png", b"x"), ("5.txt", b"y")]
DAMAGED = {
    "another file": (lambda data: b"<html>404</html>" * 99, r"004\.tar cannot be read as tar"),
    "nothing at all": (lambda data: b"", r"004\.tar cannot be read as tar: empty file"),
    "a member without end": (lambda data: endless() + data, r"004\.tar cannot be read as tar"),
    "cut off": (lambda data: data[:520], r"004\.tar ends in the middle of '4\.png'"),
    "an image without a caption": ([("4.png", b"x"), *PAIR_5], r"004\.tar: no caption .*row 0"),
    "a caption without an image": ([("4.txt", b"x"), *PAIR_5], r"'/4' of 004\.tar has no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_shard_that_is_damaged_is_named(case, tmp_path):
    odd, message = DAMAGED[case]
    require_refused(tmp_path, lambda folder: shards(folder, odd), message)


WITHOUT_COLUMNS = {
    "other columns": [("4.npy", b"x"), ("4.cls", b"y")],
    "no images": [("4.txt", b"y")],
    "no captions": [("4.png", PICTURES[0])],
    "no members": [],
}


@pytest.mark.parametrize("case", WITHOUT_COLUMNS)
def test_a_shard_without_the_columns_is_left_out_and_named(case, tmp_path):
    lines = []
    dataset = opened(tmp_path, name=shards(tmp_path / "data", WITHOUT_COLUMNS[case]), report=lines.append)
    assert len(dataset) == 9
    assert len(lines) == 1 and "004.tar" in lines[0]


def test_tars_that_all_lack_the_columns_are_refused(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"data/{number}.tar", [(f"{number}.npy", b"x")])
    with pytest.raises(DatasetError, match=r"0\.tar has no column 'image'"):
        opened(tmp_path, name=tmp_path / "data")
