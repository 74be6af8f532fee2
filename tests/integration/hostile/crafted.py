"""Archives whose headers were written by hand: fields that contradict each other, and formats that hardly anyone reads.

What two readers of one archive may disagree on is refused, or read by the one list that everything here goes by.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

from tests.integration.hostile.archives import FILES, UP, ZEROS, archive, header_of, tar_of, zip_entry, zip_of
from tests.integration.hostile.case import MIB, Cases
from tests.support.tiny import SMALL_PNG

END = bytes(1024)
USUAL = tar_of()[: -10240 % 512 or None]


def member(name: str, data: bytes = b"", **fields: object) -> bytes:
    """A tar member with these header fields, padded."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def usual() -> bytes:
    return b"".join(member(name, data) for name, data in FILES.items())


def pax(*records: tuple[str, bytes], kind: bytes = tarfile.XHDTYPE, lengths: int | None = None) -> bytes:
    """An extended header of these records; `lengths` is what each claims as its own."""
    data = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + value + b"\n"
        size = len(body) + len(str(len(body) + 3))
        data += str(lengths if lengths is not None else size).encode() + body
    return member("././@PaxHeader", data, type=kind)


def after(*parts: bytes) -> bytes:
    """The usual files, these, the end."""
    return usual() + b"".join(parts) + END


def checksummed(block: bytes) -> bytes:
    """A header block whose checksum agrees again."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def raw_size(field: bytes) -> bytes:
    """A member whose size field holds these 12 bytes."""
    block = header_of(0)
    return checksummed(block[:124] + field + block[136:])


def old_sparse(size: int) -> bytes:
    """GNU's sparse member: 1 byte stored, `size` claimed."""
    block = bytearray(header_of(1, tarfile.GNUTYPE_SPARSE))
    block[386 : 386 + 24] = b"%011o\0" % 0 + b"%011o\0" % 1
    block[483:495] = b"%011o\0" % min(size, 8**11 - 1)
    return checksummed(bytes(block)) + b"x" + bytes(511)


def pax_sparse(size: int) -> bytes:
    return pax(
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.name", b"big.png"),
        ("GNU.sparse.size", str(size).encode()),
        ("GNU.sparse.map", b"0,1"),
    ) + member("big.png", b"x")


def patched(data: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """A field of a zip's header overwritten."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(signature) + offset, value)
    return bytes(changed)


LOCAL, CENTRAL, TAIL = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def other_name() -> bytes:
    """Its directory calls a file one thing, the file itself another."""
    data = zip_of(FILES)
    return data[: data.index(b"1.png")] + b"2.png" + data[data.index(b"1.png") + 5 :]


def zip64_lies(claimed: int) -> bytes:
    """Sizes in a zip64 field that no file has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in FILES.items():
            packed.writestr(name, data)
        info = zipfile.ZipInfo("2.png")
        info.extra = struct.pack("<HHQQQ", 1, 24, claimed, claimed, claimed)
        packed.writestr(info, SMALL_PNG)
    data = bytearray(buffer.getvalue())
    place = data.rindex(CENTRAL)
    struct.pack_into("<II", data, place + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<I", data, place + 42, 0xFFFFFFFF)
    return bytes(data)


def quoted_overlap(count: int, size: int) -> bytes:
    """Fifield 2019, "A better zip bomb": each file's data begins with a stored block that holds the next one's header.

    Each has its own local header, so only the ranges tell that they lie within each other.
    """
    packer = zlib.compressobj(9, wbits=-15)
    zeros = bytes(size)
    data, inside, header = packer.compress(zeros) + packer.flush(), b"", b""
    entries: list[tuple[bytes, int, int, int]] = []
    for index in reversed(range(count)):
        if entries:  # this file holds the header of the next one, quoted, and goes on with its data
            inside = header + inside
            data = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + header + data
        name, checksum = b"%03d.png" % index, zlib.crc32(zeros, zlib.crc32(inside))
        fields = (20, 0, 8, 0, 0x21, checksum, len(data), size + len(inside), len(name), 0)
        header = LOCAL + struct.pack("<HHHHHIIIHH", *fields) + name
        entries.insert(0, (name, checksum, len(data), size + len(inside)))
    directory, offset = b"", 0
    for name, checksum, packed, unpacked in entries:
        fields = (20, 20, 0, 8, 0, 0x21, checksum, packed, unpacked, len(name), 0, 0, 0, 0, 0, offset)
        directory += CENTRAL + struct.pack("<HHHHHHIIIHHHHHII", *fields) + name
        offset += len(LOCAL) + 26 + len(name) + 5
    body = header + data
    return body + directory + struct.pack("<4sHHHHIIH", TAIL, 0, 0, count, count, len(directory), len(body), 0)


def unicode_path(name: bytes) -> bytes:
    """Info-ZIP's field of another name for the same file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for usual_name, data in FILES.items():
            packed.writestr(usual_name, data)
        info = zipfile.ZipInfo("2.png")
        info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"2.png")) + name
        packed.writestr(info, SMALL_PNG)
    return buffer.getvalue()


def by_method(method: int) -> bytes:
    return zip_of(FILES, method)


def gzip_named(name: bytes, data: bytes) -> bytes:
    """A gzip file whose header gives a name."""
    packed = gzip.compress(data)
    return packed[:3] + b"\x08" + packed[4:10] + name + b"\0" + packed[10:]


def xz_of_memory(data: bytes) -> bytes:
    """Packed with a dictionary of 1.5 GB, which unpacking has to have too."""
    return lzma.compress(
        data,
        filters=[
            {
                "id": lzma.FILTER_LZMA2,
                "dict_size": 1536 * MIB - 1,
                "mode": lzma.MODE_FAST,
                "nice_len": 8,
                "mf": lzma.MF_HC3,
                "depth": 1,
            }
        ],
    )


CASES: Cases = {
    "a sparse tar of old": archive(lambda: after(old_sparse(8 << 30)), 3, "not a regular file", quick=True),
    "a sparse tar": archive(lambda: after(pax_sparse(1 << 60)), 3),
    "a sparse tar of words": archive(
        lambda: after(pax(("GNU.sparse.map", b"a,b"), ("GNU.sparse.size", b"x")), member("b.png", b"x")), 3
    ),
    "a sparse map of a million": archive(
        lambda: after(pax(("GNU.sparse.map", b"0,1," * 200_000 + b"0,1")), member("b.png", b"x")), 3
    ),
    "a sparse tar that is its own map": archive(
        lambda: after(
            pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"b.png")),
            member("b.png", b"9999999\n" + b"1\n" * 200),
        ),
        3,
    ),
    "a name of names": archive(lambda: after(member("././@LongLink", b"a\0", type=b"L") * 5000), 3),
    "a long name that leads up": archive(
        lambda: after(member("././@LongLink", UP.encode() + b"\0", type=b"L"), member("x", SMALL_PNG)), 3, "leads out"
    ),
    "a long name with a NUL": archive(
        lambda: after(member("././@LongLink", b"a\0/../../evil.png\0", type=b"L"), member("x", SMALL_PNG)), 0
    ),
    "a long name without an end": archive(lambda: after(member("././@LongLink", b"a" * 900, type=b"L")), 3),
    "a header's path that leads up": archive(
        lambda: after(pax(("path", UP.encode())), member("x", SMALL_PNG)), 3, "leads out", quick=True
    ),
    "a header's path with a NUL": archive(lambda: after(pax(("path", b"a\0b.png")), member("x", b"")), 3, "control"),
    "a global header's path": archive(lambda: pax(("path", UP.encode()), kind=tarfile.XGLTYPE) + after(), 3),
    "a global header's link": archive(
        lambda: pax(("linkpath", b"/etc/passwd"), kind=tarfile.XGLTYPE) + after(), 0, "1 image"
    ),
    "a header's huge size": archive(lambda: after(pax(("size", b"9" * 30)), member("x.png", SMALL_PNG)), 3),
    "a header's size of a megabyte of digits": archive(
        lambda: after(pax(("size", b"9" * 900_000)), member("x.png", SMALL_PNG)), 3
    ),
    "a header's negative size": archive(lambda: after(pax(("size", b"-512")), member("x.png", SMALL_PNG)), 3),
    "a header's size that is no number": archive(lambda: after(pax(("size", b"1e9")), member("x.png", b"")), 0),
    "a header's time that is no time": archive(lambda: after(pax(("mtime", b"nan")), member("x.png", b"")), 0),
    "a header's owner beyond all": archive(lambda: after(pax(("uid", b"9" * 5000)), member("x.png", b"")), -1),
    "a record that is longer than its header": archive(
        lambda: after(pax(("path", b"x"), lengths=10**12), member("x.png", b"")), 3
    ),
    "a record of length 0": archive(lambda: after(pax(("path", b"x"), lengths=0), member("x.png", b"")), 3),
    "a record of a million digits": archive(
        lambda: after(member("p", b"9" * 900_000 + b" path=x\n", type=b"x"), member("x.png", b"")), 3
    ),
    "a path in bytes": archive(
        lambda: after(pax(("hdrcharset", b"BINARY"), ("path", b"\xff.png")), member("x", SMALL_PNG)), 3, "UTF-8"
    ),
    "headers upon headers": archive(lambda: after(pax(("comment", b"x")) * 5000, member("x.png", b"")), 3),
    "a volume's label": archive(lambda: after(member("label", type=b"V")), 3, "not a regular file"),
    "the next volume": archive(lambda: after(member("1.png", b"x", type=b"M")), 3, "not a regular file"),
    "a folder's listing": archive(lambda: after(member("d", b"Yx\0\0", type=b"D")), 3, "not a regular file"),
    "a folder with content": archive(lambda: after(member("d", SMALL_PNG, type=b"5")), -1),
    "a size of 2**80": archive(lambda: after(raw_size(b"\x80" + (2**80).to_bytes(11, "big"))), 3),
    "a size of -2**80": archive(lambda: after(raw_size(b"\xff" + (2**88 - 2**80).to_bytes(11, "big"))), 3),
    "a size in words": archive(lambda: after(raw_size(b"hello world\0")), 3),
    "a link and a file in it": archive(
        lambda: after(member("l", type=b"2", linkname="."), member("l/2.png", SMALL_PNG)), 3, "a symbolic link"
    ),
    "a hard link to itself": archive(lambda: after(member("l", type=b"1", linkname="l")), 3, "a hard link"),
    "a second tar behind the first": archive(lambda: after() + usual() + END, 0, "1 image"),
    "a name that ends in spaces": archive(lambda: after(member("2.png  ", SMALL_PNG)), 0),
    "a name that is a dot": archive(lambda: after(member("./.", SMALL_PNG)), 0, "1 image"),
    "a name that goes nowhere": archive(lambda: after(member("a/./../x.png", SMALL_PNG)), 3, "leads out"),
    "a name in UNC": archive(lambda: zip_entry("\\\\host\\share\\x.png"), 3, "Windows path"),
    "a device of DOS": archive(lambda: zip_entry("CON.png"), 0, "1 image"),
    "a stream of NTFS": archive(lambda: zip_entry("1.png::$DATA"), -1),
    "a name in bold": archive(lambda: zip_entry("\U0001d7cf.png"), -1),
    "a name of direction marks": archive(lambda: zip_entry("\u202egnp.x"), -1),
    "another name inside": archive(other_name, 3, "damaged", quick=True),
    "another name beside": archive(lambda: unicode_path(UP.encode()), -1),
    "zip64 sizes that no disk has": archive(lambda: zip64_lies(2**63 - 1), 3),
    "zip64 sizes beyond": archive(lambda: zip64_lies(2**64 - 1), 3),
    "a directory of 4 GB": archive(lambda: patched(zip_of(FILES), TAIL, 12, "<I", 2**32 - 2), 3),
    "a directory elsewhere": archive(lambda: patched(zip_of(FILES), TAIL, 16, "<I", 2**31), 3),
    "a directory of a million": archive(lambda: patched(zip_of(FILES), TAIL, 10, "<H", 65534), -1),
    "a file at the end of the archive": archive(lambda: patched(zip_of(FILES), CENTRAL, 42, "<I", 10**6), 3),
    "a name that is longer than the archive": archive(lambda: patched(zip_of(FILES), CENTRAL, 28, "<H", 65535), 3),
    "a local name that is longer": archive(lambda: patched(zip_of(FILES), LOCAL, 26, "<H", 65535), 3),
    "an archive of a later version": archive(lambda: patched(zip_of(FILES), CENTRAL, 6, "<H", 999), 3),
    "an archive behind a program": archive(lambda: b"#!/bin/sh\nexit 1\n" + bytes(500) + zip_of(FILES), 3),
    "an archive in an archive's comment": archive(
        lambda: patched(zip_of(FILES), TAIL, 20, "<H", 22) + struct.pack("<4sHHHHIIH", TAIL, 0, 0, 0, 0, 0, 0, 0), -1
    ),
    "a bomb of overlapping quotes": archive(lambda: quoted_overlap(50, 4 * MIB), 3, memory=200 * MIB, quick=True),
    "bzip2 in zip": archive(lambda: by_method(zipfile.ZIP_BZIP2), 3, "method 12"),
    "LZMA in zip": archive(lambda: by_method(zipfile.ZIP_LZMA), 3, "method 14"),
    "a gzip name that leads up": archive(lambda: gzip_named(UP.encode(), tar_of()), 0, "1 image"),
    "a gzip name of 4 MB": archive(lambda: gzip_named(b"a" * 4 * MIB, tar_of()), 0, "1 image"),
    "a gzip name without end": archive(lambda: gzip_named(b"a", tar_of())[:12] + b"a" * MIB, 3),
    "100,000 empty gzips": archive(lambda: gzip.compress(b"") * 100_000 + gzip.compress(tar_of()), 0, "1 image"),
    "100,000 empty bzip2s": archive(lambda: bz2.compress(b"") * 100_000 + bz2.compress(tar_of()), 0, "1 image"),
    "100,000 empty xzs": archive(lambda: lzma.compress(b"") * 100_000 + lzma.compress(tar_of()), 0, "1 image"),
    "noise behind a gzip": archive(lambda: gzip.compress(tar_of()) + b"noise", -1),
    "noise behind an xz": archive(lambda: lzma.compress(tar_of()) + b"noise", -1),
    "an LZMA file of old": archive(lambda: lzma.compress(tar_of(), lzma.FORMAT_ALONE), 3),
    "a tar of a bomb": archive(
        lambda: lzma.compress(b"".join(member(f"{i}.png", ZEROS[:MIB]) for i in range(300)) + END, preset=0), 3, "bomb"
    ),
}
