"""Archives: what is unpacked, what is refused, and that memory and disk stay bounded."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.fetch.archive import notes_of
from tests.support.archives import FILES, LIMITS, pack, pages, refusal, tar_of, zip_of, zip_with


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars(tmp_path, packing, format):
    long_name = "a/" + "n" * 90 + "/" + "é" * 30 + ".png"
    files = {**FILES, long_name: bytes(1024), "b/empty.png": b""}
    assert pages(tmp_path, pack(packing, tar_of(files, format))) == files


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips(tmp_path, method):
    assert pages(tmp_path, zip_of({**FILES, "ü/2.png": b"z"}, method=method)) == {**FILES, "ü/2.png": b"z"}


def test_utf8_names_that_do_not_say_so(tmp_path):
    data = zip_of({"f__.png": b"1"}).replace(b"f__.png", "fü.png".encode())
    assert pages(tmp_path, data) == {"fü.png": b"1"}


def test_modes_and_an_unfriendly_umask(tmp_path):
    before = os.umask(0o077)
    try:
        pages(tmp_path, tar_of({"top.txt": b"1", "a/b/c.png": b"2"}))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "into").rglob("*")}
    assert modes == {"top.txt": 0o644, "a": 0o755, "b": 0o755, "c.png": 0o644}


def test_one_wrapping_folder_and_rubbish(tmp_path):
    rubbish = {"__MACOSX/._1.png": b"r", "cats/.DS_Store": b"r", "cats/._1.png": b"r"}
    wrapped = {f"cats/{name}": data for name, data in FILES.items()}
    assert pages(tmp_path, zip_of({**rubbish, **wrapped})) == FILES


def test_dot_names_are_the_same(tmp_path):
    assert pages(tmp_path, tar_of({"./1.png": b"1", "./a//2.png": b"2"})) == {"1.png": b"1", "a/2.png": b"2"}


def test_two_top_folders_stay(tmp_path):
    assert set(pages(tmp_path, zip_of({"a/x/1.png": b"1", "b/2.png": b"2"}))) == {"a/x/1.png", "b/2.png"}


SAMPLES = {"1.png": b"i", "1.txt": b"c", "2.png": b"i", "2.txt": b"c"}


@pytest.mark.parametrize("packing", ["", "gz"])
def test_webdataset_stays_a_tar(tmp_path, packing):
    tar = tar_of(SAMPLES)
    assert pages(tmp_path, pack(packing, tar)) == {"data.tar": tar}


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), buffer)
    return buffer.getvalue()


def arrow(new) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"text": ["a"]})
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


TABLES = [
    ("data.parquet", parquet()),
    ("data.arrow", arrow(pa.ipc.new_file)),
    ("data.arrow", arrow(pa.ipc.new_stream)),
    ("data.jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
    ("data.json", b'\xef\xbb\xbf [{"text": "a"}]'),
    ("data.csv", b"file_name,text\n1.png,a\n"),
    ("data.tsv", b"file_name\ttext\n1.png\ta\n"),
]


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize(("name", "data"), TABLES)
def test_single_tables(tmp_path, packing, name, data):
    assert pages(tmp_path, pack(packing, data)) == {name: data}


GBK = "猫娘".encode("gbk")


def test_a_name_in_an_untold_encoding_never_becomes_a_caption(tmp_path):
    data = zip_of({"10_abcd/0.png": b"1"}).replace(b"abcd", GBK)
    assert "encoding that the archive does not tell" in refusal(tmp_path, data)


def test_where_metadata_has_the_captions_no_name_becomes_one(tmp_path):
    data = zip_of({"10_abcd/0.png": b"1", "metadata.csv": b"file_name,text"}).replace(b"abcd", GBK)
    assert len(pages(tmp_path, data)) == 2


def test_names_in_an_untold_encoding_are_said(tmp_path):
    data = zip_of({"10_abcd/0.png": b"1", "10_abcd/0.txt": b"a cat"}).replace(b"abcd", GBK)
    assert len(pages(tmp_path, data)) == 2
    (note,) = notes_of(tmp_path / "archive", LIMITS)
    assert "names of 2 members" in note and "encoding" in note
    (tmp_path / "archive").write_bytes(zip_of({"ü.png": b"1"}))
    assert notes_of(tmp_path / "archive", LIMITS) == []


def test_parts_of_a_split_zip(tmp_path):
    whole = zip_of({"a.png": bytes(range(256)) * 9})
    end = whole.rindex(b"PK\x05\x06")
    last = whole[: end + 4] + b"\x01\x00" + whole[end + 6 :]  # disk 1 of 0 and 1
    for number, part in enumerate([whole[:300], b"PK\x07\x08" + whole[:300], last]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert "part of a split archive" in refusal(folder, part)


UNSAFE_ARCHIVES = {
    "symlink": (tar_of({"l": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}}), "'l' is a symbolic link"),
    "symlink inside": (tar_of({"l": {"type": tarfile.SYMTYPE, "linkname": "1.png"}, **FILES}), "a symbolic link"),
    "hard link": (tar_of({"l": {"type": tarfile.LNKTYPE, "linkname": "../x"}}), "a hard link"),
    "device": (tar_of({"d": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}}), "a device"),
    "block device": (tar_of({"d": {"type": tarfile.BLKTYPE}}), "a device"),
    "pipe": (tar_of({"p": {"type": tarfile.FIFOTYPE}}), "a named pipe"),
    "unknown type": (tar_of({"p": {"type": b"Z"}}), "not a regular file"),
    "sparse": (tar_of({"p": {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99"}}}), "not a regular"),
    "zip symlink": (zip_with("l", b"/etc/passwd", external_attr=0o120777 << 16), "a symbolic link"),
    "zip device": (zip_with("l", b"", external_attr=0o020666 << 16), "not a regular file"),
    "zip method": (zip_of(FILES, method=zipfile.ZIP_LZMA), "zip method 14"),
    "twice": (tar_of({"1.png": b"1", "./1.png": b"2"}), "there twice"),
    "case": (tar_of({"Straße.png": b"1", "STRASSE.png": b"2"}), "but for its case"),
    "normal forms": (zip_of({"\u00e9.png": b"1", "e\u0301.png": b"2"}), "but for its case"),
    "file and folder": (tar_of({"a": b"1", "a/b.png": b"2"}), "both a file and a folder"),
    "folder and file": (zip_of({"a/b.png": b"2", "a": b"1"}), "both a file and a folder"),
    "nothing": (tar_of({}), "no files"),
    "nothing in a zip": (zip_of({}), "no files"),
    "only folders": (tar_of({"a": {"type": tarfile.DIRTYPE}}), "no files"),
    "nested": (gzip.compress(zip_of(FILES)), "packed once more"),
    "twice packed": (gzip.compress(gzip.compress(tar_of(FILES))), "packed once more"),
    "page in gzip": (gzip.compress(b"<html>"), "a web page"),
}


@pytest.mark.parametrize(("data", "reason"), UNSAFE_ARCHIVES.values(), ids=UNSAFE_ARCHIVES)
def test_unsafe_archives(tmp_path, data, reason):
    assert reason in refusal(tmp_path, data)


def test_names_that_are_not_utf8(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        file.addfile(tarfile.TarInfo("ü.png"), io.BytesIO())
    assert "not named in UTF-8" in refusal(tmp_path, buffer.getvalue())


def test_encrypted_zip(tmp_path):
    data = bytearray(zip_of(FILES))
    flags = data.index(b"PK\x01\x02") + 8
    data[flags] |= 1
    assert "encrypted" in refusal(tmp_path, bytes(data))


def test_nul_in_a_zip_name(tmp_path):
    assert "control" in refusal(tmp_path, zip_of({"a_b.png": b"1"}).replace(b"a_b.png", b"a\x00b.png"))


def test_nested_archives_stay_as_they_are(tmp_path):
    inner = zip_of({"../x": b"1"})
    assert pages(tmp_path, zip_of({"inner.zip": inner, **FILES})) == {"inner.zip": inner, **FILES}


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_truncated_tars(tmp_path, packing):
    data = pack(packing, tar_of({name: random.Random(1).randbytes(3000) for name in "abc"}))
    for number, length in enumerate(range(600, len(data) - (9000 if not packing else 0), 997)):
        folder = tmp_path / str(number)
        folder.mkdir()
        message = refusal(folder, data[:length])
        assert "truncated" in message or "damaged" in message


def test_truncated_zips(tmp_path):
    data = zip_of({name: random.Random(1).randbytes(3000) for name in "abc"})
    for number, length in enumerate([100, 4000, len(data) - 30, len(data) - 1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert "truncated" in refusal(folder, data[:length])


def test_a_flipped_bit_is_noticed(tmp_path):
    data = bytearray(zip_of({"a.png": bytes(range(200))}, method=zipfile.ZIP_STORED))
    data[100] ^= 1
    assert "CRC" in refusal(tmp_path, bytes(data))


def test_a_broken_header_in_the_middle_is_not_the_end(tmp_path):
    data = bytearray(tar_of({"a": b"1", "b": b"2", "c": b"3"}))
    data[1024 + 150] ^= 0xFF
    assert "truncated" in refusal(tmp_path, bytes(data))


ZEROS = bytes(40 << 20)
BOMBS = {
    "zip": lambda: zip_of({"a": ZEROS}),
    "many in a zip": lambda: zip_of({str(i): ZEROS[: 1 << 20] for i in range(40)}),
    "gz": lambda: gzip.compress(tar_of({"a": ZEROS})),
    "bz2": lambda: bz2.compress(tar_of({"a": ZEROS})),
    "xz": lambda: lzma.compress(tar_of({"a": ZEROS})),
    "table": lambda: gzip.compress(b"a,b\n" + ZEROS),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    data = BOMBS[name]()
    tracemalloc.start()
    try:
        assert "decompression bomb" in refusal(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    written = sum(path.stat().st_size for path in (tmp_path / "into").rglob("*"))
    assert written < (2 << 20) + 200 * len(data)


def test_total_size(tmp_path):
    limits = Limits(max_dataset_bytes=5000)
    assert "MAX_DATASET_BYTES" in refusal(tmp_path, tar_of({"a": bytes(3000), "b": bytes(3000)}), limits)


def test_a_zip_that_lies_about_sizes(tmp_path):
    data = bytearray(zip_of({"a": ZEROS[: 8 << 20]}))
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 10)
    assert "damaged" in refusal(tmp_path, bytes(data))


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_too_many_members(tmp_path, make):
    assert "more than 1,000 files" in refusal(tmp_path, make({f"{i}.png": b"" for i in range(1001)}))


def test_folders_count_too(tmp_path):
    names = {f"{i}/" + "d/" * 50 + "x": b"" for i in range(30)}
    assert "more than 1,000 files" in refusal(tmp_path, tar_of(names))


def test_a_zip_directory_is_looked_at_before_it_is_parsed(tmp_path):
    data = zip_of({f"{i:05}" + "n" * 50: b"" for i in range(12_000)}, method=zipfile.ZIP_STORED)
    assert "more than 10,000 files" in refusal(tmp_path, data, Limits(max_files=10_000))


def test_headers_that_claim_gigabytes(tmp_path):
    for number, kind in enumerate([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME]):
        info = tarfile.TarInfo("h")
        info.type, info.size = kind, 4 << 30
        folder = tmp_path / str(number)
        folder.mkdir()
        assert "headers" in refusal(folder, info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_endless_numbers_in_headers(tmp_path):
    """Each run of digits is looked at in a time that grows with its square (CVE-2024-6232)."""
    for number, data in enumerate([b"9" * 900_000 + b" path=a\n", b"900010 path=" + b"9" * 899_997 + b"\n"]):
        info = tarfile.TarInfo("h")
        info.type, info.size = tarfile.XHDTYPE, len(data)
        folder = tmp_path / str(number)
        folder.mkdir()
        member = tarfile.TarInfo("1.png").tobuf(tarfile.USTAR_FORMAT)
        archive = info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + member + bytes(1024)
        assert "too long a run of digits" in refusal(folder, archive)


SEEDS = [zip_of(FILES), tar_of(FILES), gzip.compress(tar_of(FILES)), bz2.compress(tar_of(FILES)), TABLES[0][1]]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6))
def test_any_damage_ends_in_files_or_a_refusal(tmp_path_factory, seed, changes):
    data = bytearray(seed)
    for where, value in changes:
        data[int(where * len(data))] = value
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        assert pages(folder, bytes(data))
    except DatasetError as error:
        assert "\n" not in str(error)
    assert {path.name for path in folder.iterdir()} <= {"archive", "into"}


def test_metadata_survives(tmp_path):
    assert json.loads(pages(tmp_path, zip_of(FILES))["metadata.jsonl"])["text"] == "a"


def test_an_offset_that_leads_nowhere_is_damage(tmp_path):
    """zipfile seeks to wherever the directory says, which the system refuses for a place before the file's start."""
    data = bytearray(zip_of(FILES))
    directory = data.rfind(b"PK\x05\x06")
    data[directory + 16 : directory + 20] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(DatasetError, match="damaged"):
        pages(tmp_path, bytes(data))
