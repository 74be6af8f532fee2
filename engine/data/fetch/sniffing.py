"""Detect a file's kind by its content: names and content types of downloads are untrusted or missing."""

from __future__ import annotations

import codecs
from enum import Enum
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 64 << 10
_TAR_BLOCK: Final = 512
_BOM: Final = codecs.BOM_UTF8
_BOMS_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Kind(Enum):
    """A file's kind. The value is its name in messages."""

    ZIP = "a zip archive"
    TAR = "a tar archive"
    GZIP = "a gzip file"
    BZIP2 = "a bzip2 file"
    XZ = "an xz file"
    PARQUET = "a Parquet file"
    ARROW = "an Arrow file"
    JSON = "a JSON file"
    JSON_LINES = "a JSON-lines file"
    CSV = "a CSV file"
    TSV = "a tab-separated file"
    ZSTD = "a Zstandard file"
    SEVEN_ZIP = "a 7z archive"
    RAR = "a RAR archive"
    IMAGE = "a single image"
    VIDEO = "a single video"
    WEB_PAGE = "a web page (HTML or XML)"
    POINTER = "a Git LFS pointer"
    EMPTY = "an empty file"
    UNKNOWN = "of no known kind"


PACKED: Final = frozenset({Kind.GZIP, Kind.BZIP2, Kind.XZ})

TABLE_NAMES: Final = {
    Kind.PARQUET: "data.parquet",
    Kind.ARROW: "data.arrow",
    Kind.JSON: "data.json",
    Kind.JSON_LINES: "data.jsonl",
    Kind.CSV: "data.csv",
    Kind.TSV: "data.tsv",
}

_MAGIC: Final = (
    (b"PK\x03\x04", Kind.ZIP),
    (b"PK\x05\x06", Kind.ZIP),
    (b"PK\x07\x08", Kind.ZIP),
    (b"\x1f\x8b", Kind.GZIP),
    (b"BZh", Kind.BZIP2),
    (b"\xfd7zXZ\x00", Kind.XZ),
    (b"PAR1", Kind.PARQUET),
    (b"ARROW1", Kind.ARROW),
    (b"\xff\xff\xff\xff", Kind.ARROW),
    (b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (b"Rar!\x1a\x07", Kind.RAR),
    (b"\x89PNG\r\n\x1a\n", Kind.IMAGE),
    (b"\xff\xd8\xff", Kind.IMAGE),
    (b"GIF8", Kind.IMAGE),
    (b"II*\x00", Kind.IMAGE),
    (b"MM\x00*", Kind.IMAGE),
    (b"version https://git-lfs", Kind.POINTER),
)


def sniff(path: Path) -> Kind:
    """Return the kind of the file at `path`, from its first 64 KiB. Raises OSError only."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return Kind.EMPTY
    # A tar begins with a member's name, which may look like anything; its checksum is the stronger sign.
    if is_tar_header(head[:_TAR_BLOCK]):
        return Kind.TAR
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if _is_boxed_image(head):
        return Kind.IMAGE
    return Kind.VIDEO if _is_video(head) else _text_kind(head)


def is_tar_header(block: bytes) -> bool:
    """Return whether a 512-byte block is a tar header (v7, ustar, GNU, pax), or the zeros of an empty tar."""
    if len(block) < _TAR_BLOCK:
        return False
    if not any(block):
        return True
    try:
        claimed = int(block[148:156].strip(b" \x00") or b"-1", 8)
    except ValueError:
        return False
    plain = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Some old programs summed signed characters.
    signed = plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return claimed in (plain, signed)


def _is_boxed_image(head: bytes) -> bool:
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    heif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    return webp or heif or bitmap


def _is_video(head: bytes) -> bool:
    """Return whether a file is an MP4, MOV, Matroska, WebM or AVI file; asked after `_is_boxed_image`."""
    return head[4:8] in (b"ftyp", b"moov") or head[:4] == b"\x1aE\xdf\xa3" or head[8:12] == b"AVI "


def _text_kind(head: bytes) -> Kind:
    encoding = "utf-16" if head.startswith(_BOMS_16) else "utf-8"
    try:
        # Incremental: the head may end inside a character.
        text = codecs.getincrementaldecoder(encoding)().decode(head.removeprefix(_BOM)).lstrip()
    except UnicodeDecodeError:
        return Kind.UNKNOWN
    by_first = {"<": Kind.WEB_PAGE, "{": Kind.JSON_LINES, "[": Kind.JSON}.get(text[:1])
    if by_first is not None:
        return by_first
    header = text.partition("\n")[0].rstrip("\r")
    if not header or not header.replace("\t", " ").isprintable():
        return Kind.UNKNOWN
    if "\t" in header:
        return Kind.TSV
    return Kind.CSV if any(delimiter in header for delimiter in ",;|") else Kind.UNKNOWN
