"""Archives behind a URL that would write elsewhere, never end, or are something else."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable

from tests.integration.hostile.case import MIB, Case, Cases, Place
from tests.support.tiny import SMALL_PNG

ROW = json.dumps({"file_name": "1.png", "text": "a"}).encode() + b"\n"
FILES = {"metadata.jsonl": ROW, "1.png": SMALL_PNG}
ZEROS = bytes(256 * MIB)
LINK = {"type": tarfile.SYMTYPE}


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_entry(name: str, data: bytes = SMALL_PNG, **fields: int) -> bytes:
    """A zip of the usual files and one whose name or attributes zipfile would not write by itself."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for usual, content in FILES.items():
            archive.writestr(usual, content)
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        for field, value in fields.items():
            setattr(info, field, value)
        archive.writestr(info, data)
    return buffer.getvalue()


def tar_of(*members: tuple[str, bytes | dict[str, object]], usual: bool = True) -> bytes:
    """A tar of the usual files, then these: contents, or a header's fields."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (*(FILES.items() if usual else ()), *members):
            info = tarfile.TarInfo(name)
            for field, value in (data if isinstance(data, dict) else {"size": len(data)}).items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(b"" if isinstance(data, dict) else data))
    return buffer.getvalue()


def overlapping_zip(count: int, size: int) -> bytes:
    """All entries of the directory share one compressed file: `count` times `size` bytes in a few kilobytes."""
    packed = zip_of({"0.png": bytes(size)})
    start = packed.index(b"PK\x01\x02")
    end = packed.index(b"PK\x05\x06")
    entry = packed[start:end]
    directory = b"".join(entry.replace(b"0.png", f"{i:05}".encode()) for i in range(count))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    return packed[:start] + directory + tail


def crowded_zip(count: int) -> bytes:
    """A zip64 directory of `count` empty files; only one of them is there."""
    packed = zip_of({"0000000.png": b""}, zipfile.ZIP_STORED)
    start = packed.index(b"PK\x01\x02")
    entry = packed[start : packed.index(b"PK\x05\x06")]
    head, tail = entry.split(b"0000000.png")
    directory = b"".join(head + b"%07d.png" % i + tail for i in range(count))
    size = start + len(directory)
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, size, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return packed[:start] + directory + zip64 + locator + end


def crowded_tar(count: int) -> bytes:
    return gzip.compress(b"".join(tarfile.TarInfo(f"{i}").tobuf() for i in range(count)) + bytes(1024), 1)


def encrypted(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def lying_zip() -> bytes:
    """Its directory says 10 bytes, its content has millions."""
    data = bytearray(zip_of({"1.png": ZEROS[: 8 * MIB]}))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)
    return bytes(data)


def header_of(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("1.png")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def nested(levels: int) -> bytes:
    data = zip_of(FILES)
    for _ in range(levels):
        data = zip_of({"inner.zip": data})
    return data


def archive(build: Callable[[], bytes], code: int, *words: str, quick: bool = False, **options: float) -> Case:
    def make(place: Place) -> dict[str, object]:
        return {"dataset": {"url": place.server.url(build())}}

    env = {"ALLOW_PRIVATE_URLS": "1"}
    return Case(make=make, code=code, words=words, connects=True, variables=env, quick=quick, **options)


def outside(build: Callable[[str], bytes], *words: str, quick: bool = False) -> Case:
    """An archive that names an absolute path beside the job's folders."""

    def make(place: Place) -> dict[str, object]:
        return {"dataset": {"url": place.server.url(build(str(place.root / "evil.png")))}}

    env = {"ALLOW_PRIVATE_URLS": "1"}
    return Case(make=make, code=3, words=words, connects=True, variables=env, quick=quick)


UP = "../../../../../../evil.png"
CASES: Cases = {
    "tar, up": archive(lambda: tar_of((UP, SMALL_PNG)), 3, "leads out", quick=True),
    "tar.gz, up in the middle": archive(lambda: gzip.compress(tar_of((f"a/b/{UP}", SMALL_PNG))), 3, "leads out"),
    "zip, up": archive(lambda: zip_entry(UP), 3, "leads out"),
    "tar, absolute": outside(lambda path: tar_of((path, SMALL_PNG)), "absolute path"),
    "zip, absolute": outside(zip_entry, "absolute path", quick=True),
    "zip, Windows up": archive(lambda: zip_entry("..\\..\\evil.png"), 3, "leads out"),
    "tar, drive": archive(lambda: tar_of(("C:/evil.png", SMALL_PNG)), 3, "Windows path"),
    "tar, symlink out": outside(lambda path: tar_of(("l", {**LINK, "linkname": path})), "a symbolic link", quick=True),
    "tar, through a symlink": archive(
        lambda: tar_of(("l", {**LINK, "linkname": "/tmp"}), ("l/evil.png", SMALL_PNG)), 3, "a symbolic link"
    ),
    "tar, through a symlink that comes later": archive(
        lambda: tar_of(("l/evil.png", SMALL_PNG), ("l", {**LINK, "linkname": "/tmp"})), 3, "a symbolic link"
    ),
    "tar, hard link out": archive(
        lambda: tar_of(("l", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})), 3, "a hard link"
    ),
    "tar, device": archive(
        lambda: tar_of(("d", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0})), 3, "a device"
    ),
    "tar, pipe": archive(lambda: tar_of(("p", {"type": tarfile.FIFOTYPE})), 3, "a named pipe"),
    "zip, symlink": archive(lambda: zip_entry("l", b"/etc/passwd", external_attr=0o120777 << 16), 3, "a symbolic link"),
    "zip, device": archive(lambda: zip_entry("d", b"", external_attr=0o060666 << 16), 3, "not a regular file"),
    "zip, set-user-ID": archive(lambda: zip_entry("tool", b"#!/bin/sh\n", external_attr=0o106755 << 16), 0, "1 image"),
    "zip bomb": archive(lambda: zip_of({"1.png": ZEROS}), 3, "bomb", memory=150 * MIB, quick=True),
    "zip bomb in many files": archive(
        lambda: zip_of({f"{i}.png": ZEROS[: 4 * MIB] for i in range(64)}), 3, "bomb", memory=150 * MIB
    ),
    "zip bomb of overlapping files": archive(lambda: overlapping_zip(20_000, MIB), 3, memory=200 * MIB),
    "tar.gz bomb": archive(lambda: gzip.compress(tar_of(("2.png", ZEROS))), 3, "bomb", memory=150 * MIB),
    "tar.bz2 bomb": archive(lambda: bz2.compress(tar_of(("2.png", ZEROS))), 3, "bomb", memory=150 * MIB),
    "tar.xz bomb": archive(lambda: lzma.compress(tar_of(("2.png", ZEROS)), preset=0), 3, "bomb", memory=250 * MIB),
    "gz bomb of a table": archive(lambda: gzip.compress(b"image,text\n" + ZEROS), 3, "bomb", memory=150 * MIB),
    "bombs in bombs": archive(lambda: gzip.compress(gzip.compress(ZEROS)), 3, memory=150 * MIB),
    "zips in zips": archive(lambda: nested(8), 3, "nothing to train on"),
    "zip in gz": archive(lambda: gzip.compress(zip_of(FILES)), 3, "packed once more"),
    "encrypted zip": archive(lambda: encrypted(zip_of(FILES)), 3, "encrypted", quick=True),
    "truncated zip": archive(lambda: zip_of(FILES)[:-30], 3, "truncated"),
    "truncated tar": archive(lambda: tar_of()[:1400], 3, "truncated"),
    "truncated tar.gz": archive(lambda: gzip.compress(tar_of())[:-20], 3, "truncated", quick=True),
    "truncated tar.xz": archive(lambda: lzma.compress(tar_of())[:-20], 3, "truncated"),
    "truncated tar.bz2": archive(lambda: bz2.compress(tar_of())[:-20], 3, "truncated"),
    "flipped bit": archive(lambda: bytes(b ^ (i == 60) for i, b in enumerate(zip_of(FILES))), 3, "damaged"),
    "a zip that lies about sizes": archive(lying_zip, 3, "damaged"),
    "a tar member of 10 GB that is not there": archive(lambda: header_of(10 << 30) + bytes(1024), 3, "truncated"),
    "a tar member of negative size": archive(lambda: header_of(-5) + bytes(1024), 3),
    "a tar header of 4 GB": archive(lambda: header_of(4 << 30, tarfile.XHDTYPE) + bytes(9000), 3, "headers"),
    "a long name of 4 GB": archive(lambda: header_of(4 << 30, tarfile.GNUTYPE_LONGNAME) + bytes(9000), 3, "headers"),
    "a million files in a zip": archive(lambda: crowded_zip(1_000_001), 3, "1,000,000 files", seconds=120),
    "a million files in a tar": archive(lambda: crowded_tar(1_000_001), 3, seconds=240, memory=1024 * MIB),
    "a name twice": archive(lambda: tar_of(("1.png", b"another")), 3, "there twice", quick=True),
    "a name twice but for its case": archive(lambda: zip_entry("1.PNG"), 3, "case"),
    "a name twice but for its accents": archive(
        lambda: zip_of({**FILES, "\u00e9.png": b"1", "e\u0301.png": b"2"}), 3, "case"
    ),
    "a file and a folder": archive(lambda: tar_of(("1.png/2.png", SMALL_PNG)), 3, "both a file and a folder"),
    "a name in Latin-1": archive(lambda: tar_of(("\udcfc.png", SMALL_PNG)), 3, "UTF-8"),
    "a name in code page 437": archive(lambda: zip_entry("\u00fc.png"), 0, "1 image"),
    "a name with a NUL": archive(lambda: zip_entry("a_b.png").replace(b"a_b.png", b"a\0b.png"), 3, "control"),
    "a name with escape codes": archive(lambda: tar_of(("\x1b[31mred.png", SMALL_PNG)), 3, "control"),
    "a name with a new line": archive(lambda: zip_entry("a\nerror: b.png"), 3, "control"),
    "a name of a kilobyte": archive(lambda: tar_of(("n" * 1000, SMALL_PNG)), 3, "too long"),
    "a thousand folders deep": archive(lambda: tar_of(("d/" * 400 + "x", SMALL_PNG)), 3, "deep"),
    "no name": archive(lambda: zip_entry(""), 3, "without a name"),
    "a web page": archive(lambda: b"<!DOCTYPE html><html>Sign in</html>", 3, "web page", quick=True),
    "a PDF": archive(lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", 3),
    "a program": archive(lambda: b"\x7fELF" + bytes(100), 3),
    "an LFS pointer": archive(lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", 3, "LFS"),
    "a single image": archive(lambda: SMALL_PNG, 3, "a single image"),
    "a 7z archive": archive(lambda: b"7z\xbc\xaf\x27\x1c" + bytes(100), 3, "7z"),
    "a RAR archive": archive(lambda: b"Rar!\x1a\x07\x01\x00" + bytes(100), 3, "RAR"),
    "nothing": archive(lambda: b"", 3, "empty"),
    "noise": archive(lambda: random.Random(1).randbytes(100_000), 3),
    "an empty tar": archive(lambda: tar_of(usual=False), 3, "no files"),
    "an empty zip": archive(lambda: zip_of({}), 3, "no files"),
    "a good zip": archive(lambda: zip_of(FILES), 0, "1 image", quick=True),
    "a good tar.xz": archive(lambda: lzma.compress(tar_of()), 0, "1 image"),
}
