"""One file by its URL: fetched once, checked before it is kept, and refused as a model."""

import errno
import functools
import hashlib
import os

import pytest

from engine.core.errors import ModelError, OutputError
from engine.data.fetch import Limits, fetch_file, files
from tests.support.servers import serving

CONTENT = b"weights " * 40_000


@pytest.fixture
def fetch(tmp_path):
    return functools.partial(
        fetch_file,
        cache_dir=tmp_path / "cache",
        suffix=".safetensors",
        check=lambda path: None,
        report=lambda line: None,
        limits=Limits(allow_private_urls=True),
    )


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "models").rglob("*") if path.suffix != ".lock")


def test_fetched_once_and_named_by_content(fetch, tmp_path):
    with serving(CONTENT) as (url, asked):
        path = fetch(url)
        assert path.read_bytes() == CONTENT and path.stem == hashlib.sha256(CONTENT).hexdigest()
        assert fetch(url) == path and len(asked) == 1
        assert fetch(f"{url}?again") == path and len(asked) == 2, "another URL may hold something else"
    assert [name for name in kept(tmp_path) if ".part" in name] == []


def test_a_file_that_is_gone_is_fetched_again(fetch):
    with serving(CONTENT) as (url, asked):
        fetch(url).unlink()
        assert fetch(url).read_bytes() == CONTENT and len(asked) == 2


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"content": "../../x"}', b'{"content": 3}'])
def test_a_damaged_note_is_no_matter(fetch, tmp_path, note):
    with serving(CONTENT) as (url, asked):
        fetch(url)
        (pointer,) = (tmp_path / "cache" / "models" / "url").glob("*.json")
        pointer.write_bytes(note)
        assert fetch(url).read_bytes() == CONTENT and len(asked) == 2


def test_what_is_refused_is_not_kept(fetch, tmp_path):
    def check(path):
        assert path.read_bytes() == CONTENT
        raise ModelError("a web page")

    with serving(CONTENT) as (url, asked):
        with pytest.raises(ModelError, match="a web page"):
            fetch(url, check=check)
        assert [name for name in kept(tmp_path) if name not in ("url", "content")] == []
        assert fetch(url).read_bytes() == CONTENT and len(asked) == 2


@pytest.mark.parametrize(
    "status, limits, message",
    [
        (404, Limits(allow_private_urls=True), "answered 404: there is nothing; check the URL"),
        (200, Limits(), "private"),
        (200, Limits(allow_private_urls=True, max_dataset_bytes=1000), "larger than 1,000 bytes; .* MAX_DATASET_BYTES"),
    ],
)
def test_refusals_are_the_models(fetch, tmp_path, status, limits, message):
    with serving(CONTENT, status) as (url, _), pytest.raises(ModelError, match=message) as caught:
        fetch(url, limits=limits)
    assert caught.value.code == 4 and str(caught.value).startswith("model.name: ")


def test_what_is_there_is_found_in_a_cache_that_cannot_be_written(fetch, tmp_path, monkeypatch):
    with serving(CONTENT) as (url, _):
        path = fetch(url)
    for lock in (tmp_path / "cache").rglob("*.lock"):
        lock.unlink()
    before = sorted((tmp_path / "cache").rglob("*"))

    def refuse(*_, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "locked", refuse)
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert fetch(url) == path and sorted((tmp_path / "cache").rglob("*")) == before
    with pytest.raises(OutputError, match="read-only"):
        fetch("http://127.0.0.1:9/m")


def test_a_cache_that_cannot_be_written(fetch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError):
        fetch("http://127.0.0.1:9/m")
