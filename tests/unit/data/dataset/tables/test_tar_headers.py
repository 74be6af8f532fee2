"""The members that our own reader finds are those that tarfile finds, whoever packed the tar."""

import io
import os
import tarfile
from itertools import islice

import pytest

from engine.core.errors import DatasetError
from engine.data.dataset.tables.tar_headers import members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ["a.png", "folder/b.txt", "é.png", "l" * 120 + ".txt", "f" * 90 + "/" + "n" * 60 + ".txt"]


def found(path):
    with path.open("rb") as file:
        return list(members(file.fileno(), "t.tar"))


def by_tarfile(path):
    with tarfile.open(path, "r:") as tar:
        return [(one.name, one.offset_data, one.size) for one in tar if one.isreg()]


def packed(path, infos, **options):
    with tarfile.open(path, "w", **options) as tar:
        for info, data in infos:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def info(name, **attributes):
    made = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("seconds", [1_700_000_000, 1_700_000_000.25], ids=["whole", "fractional"])
@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_of_tarfile(form, seconds, tmp_path):
    names = NAMES[:2] if form == "ustar" else NAMES
    infos = [(info(name, mtime=seconds), bytes([i]) * i * 500) for i, name in enumerate(names)]
    infos.insert(1, (info("folder", type=tarfile.DIRTYPE), b""))
    infos.insert(2, (info("link.png", type=tarfile.SYMTYPE, linkname="a.png"), b""))
    path = packed(tmp_path / "t.tar", infos, format=FORMATS[form])
    assert found(path) == by_tarfile(path)
    assert [name for name, _, _ in found(path)] == names


def test_headers_that_change_what_follows_are_tarfiles(tmp_path):
    """A path in an extended header, one for all members, and records beside a time that do not matter."""
    own = [(info("a.png", pax_headers={"path": "b.png", "mtime": "1.5"}), b"1"), (info("c.png"), b"22")]
    assert [name for name, _, _ in found(packed(tmp_path / "own.tar", own))] == ["b.png", "c.png"]
    options = {"format": tarfile.PAX_FORMAT, "pax_headers": {"path": "all.png"}}
    path = packed(tmp_path / "all.tar", [(info("a.png"), b"1"), (info("c.png"), b"22")], **options)
    assert found(path) == by_tarfile(path)


def test_a_header_with_a_wrong_checksum_ends_the_tar_as_for_tarfile(tmp_path):
    path = packed(tmp_path / "t.tar", [(info(f"{i}.png"), b"x" * 600) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[3 * 512] ^= 1
    path.write_bytes(data)
    assert found(path) == by_tarfile(path)
    assert len(found(path)) == 1


def test_a_folder_of_an_old_tar_is_none_of_them(tmp_path):
    """Its header has no type, but a name that ends with a slash."""
    path = packed(tmp_path / "t.tar", [(info("a.png/", type=tarfile.AREGTYPE), b""), (info("b.png"), b"1")])
    assert [name for name, _, _ in found(path)] == ["b.png"]


def test_a_member_of_negative_size_is_refused(tmp_path):
    """Its successor is itself, or a member before it."""
    path = packed(tmp_path / "t.tar", [(info(f"{i}.png"), b"x" * 600) for i in range(2)])
    data = bytearray(path.read_bytes())
    header = data[3 * 512 : 4 * 512]
    header[124:136] = b"-0000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[3 * 512 : 4 * 512] = header
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(DatasetError, match=r"negative size, '1\.png'"):
        list(islice(members(file.fileno(), "t.tar"), 9))


@pytest.mark.parametrize("size", [512 + 100, 512 + 599, 3 * 512 + 599])
def test_a_tar_that_is_cut_off_is_refused(size, tmp_path):
    path = packed(tmp_path / "t.tar", [(info(f"{i}.png"), b"x" * 600) for i in range(2)])
    os.truncate(path, size)
    with pytest.raises((DatasetError, tarfile.ReadError)):
        found(path)
