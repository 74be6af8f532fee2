"""Lists of shards: the forms that are read, and lists that are refused with the line."""

import json

import pytest

from engine.core.errors import DatasetError
from engine.data.fetch.shards import lists
from engine.data.fetch.shards.lists import expand_url, is_list, read_list

BASE = "https://host/data/list.txt?signed=1"


def written(tmp_path, content):
    path = tmp_path / "list"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines(tmp_path):
    content = "\ufeff# shards\n\n a.tar \r\nsub/b.tar?x=1\n/c.tar\nhttp://other:8080/d-{8..9}.tar\n//third/e\n"
    path = written(tmp_path, content)
    assert is_list(path)
    assert read_list(path, BASE) == [
        "https://host/data/a.tar",
        "https://host/data/sub/b.tar?x=1",
        "https://host/c.tar",
        "http://other:8080/d-8.tar",
        "http://other:8080/d-9.tar",
        "https://third/e",
    ]


@pytest.mark.parametrize(
    "value",
    [
        ["a.tar", "b.tar"],
        {"__kind__": "wids-shard-index-v1", "shardlist": [{"url": "a.tar", "nsamples": 3}, {"url": "b.tar"}]},
    ],
)
def test_json(tmp_path, value):
    path = written(tmp_path, json.dumps(value, indent=1))
    assert is_list(path)
    assert read_list(path, BASE) == ["https://host/data/a.tar", "https://host/data/b.tar"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"file_name,text\na.png,a cat\n",
        b'{"file_name": "a.png", "text": "a"}\n',
        b'[{"file_name": "a.png", "text": "a"}]',
        b"<html>https://host/a.tar</html>",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04a.tar",
        b"\xff\xfea.tar\n",
    ],
)
def test_what_is_no_list(tmp_path, content):
    assert not is_list(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("https://host/a.tar\nfile:///etc/passwd", "line 2 .*expected an http or https URL"),
        ("https://host/a.tar\ns3://bucket/b.tar", "line 2 .*expected an http or https URL"),
        ("https://host\\@other/a.tar", "line 1 .*expected an http or https URL"),
        ("https://[host/a.tar", "line 1 .*expected an http or https URL"),
        ("https://user:secret@host/a.tgz?token=secret", "line 1 .*unpack it to a plain .tar"),
        ("//user:secret@host/a.zip?token=secret", "line 1 .*pack its files"),
        ("a.tar\n//user:secret@[host/a.zip", "line 2 .*expected an http or https URL"),
        ("a.zip?token=secret", "line 1 of the list of shards is https://.*pack its files"),
        ("https://host/a.tar?token={secret}", "line 1 .*range of numbers"),
        ("a.tar#1\na.tar#2", "line 2 .*a second time"),
        ("a.tar.gz", "line 1 .*unpack it to a plain .tar"),
        ("a.zip", "line 1 .*pack its files into a plain .tar"),
        ("train-0.parquet", "line 1 .*lists of tables are not read"),
        ("# one\n\na.tar\na.tar", "line 4 .*a second time"),
        ("a.tar\na\x00.tar", "line 2 "),
        ("{0..1}.tar\n1.tar", "line 2 .*a second time"),
        ("{a..b}.tar", "line 1 of the list of shards has something else than a range of numbers in braces"),
        ("{0..999999999}.tar", "line 1 .*too many URLs"),
        ("a.tar\n" + "x" * 9000, "line 2 .*longer than 8,192 bytes"),
        (b"a.tar\n#" + b"x" * 70_000 + b"\n\xff", "not UTF-8"),
        ('["a.tar", 3]', "entry 1 .*expected a URL"),
        ('{"shardlist": [{"file": "https://host/a.tar?token=secret"}]}', "entry 0 .*expected a URL"),
        ('["a.tar"', "not valid JSON"),
        ('["a.tar", ' + "[" * 100_000, "not valid JSON"),
        ('{"shardlist": [{"name": "a.tar"}]}', "entry 0 .*expected a URL"),
        ('{"shardlist": []}', "is empty"),
    ],
)
def test_refused(tmp_path, content, message):
    path = written(tmp_path, content)
    assert is_list(path)
    with pytest.raises(DatasetError, match=message) as caught:
        read_list(path, BASE)
    assert "secret" not in str(caught.value)


def test_too_many_and_too_long(tmp_path, monkeypatch):
    assert lists.MAX_SHARDS == 100_000
    monkeypatch.setattr(lists, "MAX_SHARDS", 1000)
    lines = [f"{number}.tar\n" for number in range(1001)]
    assert len(read_list(written(tmp_path, "".join(lines[:-1])), BASE)) == 1000
    with pytest.raises(DatasetError, match="more than 1,000"):
        read_list(written(tmp_path, "".join(lines)), BASE)
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 1000)
    with pytest.raises(DatasetError, match="more than 1,000 bytes"):
        read_list(tmp_path / "list", BASE)


def test_expanded_url():
    assert expand_url("https://host/{00..01}.tar?a=b") == ["https://host/00.tar?a=b", "https://host/01.tar?a=b"]
    with pytest.raises(DatasetError, match=r"dataset\.url .*range of numbers"):
        expand_url("https://host/{x}.tar")
