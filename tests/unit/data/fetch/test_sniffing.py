"""Kinds of files, known by their first bytes."""

import pytest

from engine.data.fetch.archive import Kind, sniff
from tests.support.archives import pages, refusal


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Kind.EMPTY),
        (b"<!DOCTYPE html><html>", Kind.WEB_PAGE),
        (b"\n <?xml version='1.0'?><Error/>", Kind.WEB_PAGE),
        (b"\x89PNG\r\n\x1a\n....", Kind.IMAGE),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", Kind.IMAGE),
        (b"\0\0\0\x18ftypisom....", Kind.VIDEO),
        (b"\0\0\0\x18ftypavif....", Kind.IMAGE),
        (b"\x1aE\xdf\xa3....", Kind.VIDEO),
        (b"RIFF\0\0\0\0AVI LIST", Kind.VIDEO),
        (b"\x28\xb5\x2f\xfd...", Kind.ZSTD),
        (b"Rar!\x1a\x07\x01\x00", Kind.RAR),
        (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
        (b"version https://git-lfs.github.com/spec/v1\n", Kind.POINTER),
        (b"no table, this\x00", Kind.UNKNOWN),
        (b"plain words", Kind.UNKNOWN),
        ("plain words".encode("utf-16"), Kind.UNKNOWN),
        (b"\xff\xfea\x00", Kind.UNKNOWN),
    ],
)
def test_what_is_no_dataset_says_what_it_is(tmp_path, data, kind):
    assert refusal(tmp_path, data).startswith(f"it is {kind.value}")
    assert sniff(tmp_path / "archive") is kind


@pytest.mark.parametrize(
    ("text", "name"),
    {
        "a;b\n1;2\n": "data.csv",
        "sep=;\na;b\n": "data.csv",
        "a|b\n1|2\n": "data.csv",
        "a\tb\n1\t2\n": "data.tsv",
        '{"a": 1}\n': "data.jsonl",
        '[{"a": 1}]\n': "data.json",
    }.items(),
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets_are_known_by_their_content(tmp_path, text, name, encoding):
    assert pages(tmp_path, text.encode(encoding)) == {name: text.encode(encoding)}
