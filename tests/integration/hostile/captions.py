"""Captions that nobody would write: trained on as they are, or refused with their row."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.hostile.case import Case, Cases, Place
from tests.integration.hostile.tables import lines, local
from tests.support.tiny import SMALL_PNG


def caption(text: Any, code: int = 0, *words: str, **options: Any) -> Case:
    """Trained and drawn with, unless it is refused."""
    files = {"metadata.jsonl": lines({"file_name": "1.png", "text": text}), "1.png": SMALL_PNG}
    return local(files, code, *words, train=True, **options)


def beside(make: Callable[[Path], object], *words: str) -> Case:
    """A caption file beside an image that is none."""

    def build(place: Place) -> dict[str, object]:
        (place.inputs / "1.png").write_bytes(SMALL_PNG)
        make(place.inputs / "1.txt")
        return {"dataset": {"name": str(place.inputs)}}

    return Case(make=build, code=3, words=words)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


CASES: Cases = {
    "a file of a gigabyte": beside(sparse, "65,536"),
    "a pipe": beside(os.mkfifo, "1.txt"),
    "a folder": beside(Path.mkdir),
    "a device": beside(lambda path: path.symlink_to("/dev/zero"), "1.txt"),
    "a link to itself": beside(lambda path: path.symlink_to(path.name)),
    "a file of UTF-16": beside(lambda path: path.write_bytes("a cat".encode("utf-16")), "UTF-16"),
    "a file with a NUL": beside(lambda path: path.write_bytes(b"a\0b"), "NUL"),
    "empty": caption(""),
    "a list of one empty": caption([""]),
    "no list": caption([], 3, "no caption"),
    "ten million characters": caption("a cat " * 1_700_000, 3, "row 0", "100,000"),
    "one word as long as is read": caption("a" * 100_000),
    "control characters": caption("".join(map(chr, range(1, 32)))),
    "a NUL": caption("a\0b"),
    "escape codes and new lines": caption("\x1b]0;owned\x07\x1b[2J\nerror: all is lost\r\n", quick=True),
    "markup": caption("</script><script>alert(1)</script><img src=x onerror=alert(1)>"),
    "text from right to left": caption("\u202e\u202dabc\u2066"),
    "a thousand combining marks": caption("a" + "\u0301" * 1000),
    "not a character": caption("\uffff\ufffe\U0010ffff"),
    "special tokens": caption("<|startoftext|><|endoftext|>" * 100),
    "a template": caption("{prompt} %s ${HOME} $(id) `id`"),
    "a hundred thousand captions": caption([f"a {i}" for i in range(100_000)]),
    "half a character": local(
        {"metadata.jsonl": b'{"file_name": "1.png", "text": "\\udc00"}\n', "1.png": SMALL_PNG}, 3, "Unicode", train=True
    ),
    "bytes": local(
        {"metadata.jsonl": b'{"file_name": "1.png", "text": "\x80\x81"}\n', "1.png": SMALL_PNG}, 3, train=True
    ),
}
