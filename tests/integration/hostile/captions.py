"""Captions that nobody would write: trained on as they are, or refused with their row."""

from __future__ import annotations

from typing import Any

from tests.integration.hostile.case import Case, Cases
from tests.integration.hostile.tables import lines, local
from tests.tiny import SMALL_PNG


def caption(text: Any, code: int = 0, *words: str, **options: Any) -> Case:
    """Trained and drawn with, unless it is refused."""
    files = {"metadata.jsonl": lines({"file_name": "1.png", "text": text}), "1.png": SMALL_PNG}
    return local(files, code, *words, train=True, **options)


CASES: Cases = {
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
